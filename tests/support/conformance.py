"""A server's HTTP against its own OpenAPI description, by schemathesis: examples, borders, and what it invents within and outside of the description."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tocsin.stack import process

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,\
negative_data_rejection,missing_required_header,unsupported_method,allow_header_conformance,ignored_auth"


async def schemathesis(url: str, folder: Path, *options: str, invented: int = 0) -> tuple[int, str]:
    """(exit code, what it printed). Without `invented` it tries the examples and borders; with it, so many inventions an operation too, others at each run."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{url}/openapi.json",
        "--checks",
        CHECKS,
        "--request-timeout",
        "20",
        "--no-color",
        "--warnings",
        "off",
    ]
    fuzzing = ["--phases", "examples,coverage,fuzzing", "--max-examples", str(invented), "--generation-database", "none"]
    certain = ["--phases", "examples,coverage", "--generation-deterministic"]
    child = await asyncio.create_subprocess_exec(
        # It looks for its settings in the present folder.
        *(*command, *(fuzzing if invented else certain), *options),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await child.communicate()
    finally:
        await process.kill(child)
    assert child.returncode is not None
    return child.returncode, output.decode()
