// Conditions as a person writes them, `status = paid and total >= 10`, into the gateway's `where`. JSON goes through as it is.

const OPERATORS = { "=": "eq", "==": "eq", "!=": "ne", "<>": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte" };
const TOKEN = /\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|(<>|[<>!=]=?|[(),])|([^\s<>!=(),'"]+))/y;
const HINT = "write for example: status = paid and total >= 10, or customer in (1, 2), or note is null, or note like a%";

/** The `where` of a text; undefined where it is empty. Throws an Error that says what is allowed. */
export function parseWhere(text) {
  if (text.trim() === "") return undefined;
  if (text.trim().startsWith("{")) {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`the filter is not JSON: ${error.message}`);
    }
  }
  const tokens = tokensOf(text.trim());
  const where = {};
  let at = 0;
  const next = () => tokens[at++] ?? { text: "", kind: "end" };
  const is = (word) => tokens[at]?.kind === "word" && tokens[at].text.toLowerCase() === word;
  do {
    const column = next();
    if (column.kind !== "word" && column.kind !== "name") throw new Error(`a column was expected in place of ${JSON.stringify(column.text)}; ${HINT}`);
    const [operator, operand] = condition(next, is, () => at++);
    (where[column.text] ??= {})[operator] = operand;
  } while (at < tokens.length && separator(next()));
  return where;
}

function condition(next, is, skip) {
  if (is("is")) {
    skip();
    const not = is("not") && (skip(), true);
    if (!is("null")) throw new Error(`after “is” comes null, or not null; ${HINT}`);
    skip();
    return ["null", !not];
  }
  if (is("like")) return skip(), ["like", String(next().text)];
  if (is("in")) {
    skip();
    if (next().text !== "(") throw new Error(`after “in” comes a list in parentheses; ${HINT}`);
    const list = [];
    do list.push(value(next()));
    while (separatorOrEnd(next()));
    return ["in", list];
  }
  const operator = next();
  if (operator.kind !== "sign" || !(operator.text in OPERATORS)) throw new Error(`${JSON.stringify(operator.text)} is no comparison; ${HINT}`);
  return [OPERATORS[operator.text], value(next())];
}

function separator({ text, kind }) {
  if ((kind === "word" && text.toLowerCase() === "and") || text === ",") return true;
  throw new Error(`conditions are joined by “and”, not by ${JSON.stringify(text)}; ${HINT}`);
}

function separatorOrEnd({ text }) {
  if (text !== "," && text !== ")") throw new Error(`the list does not end; ${HINT}`);
  return text === ",";
}

function value({ text, kind }) {
  if (kind === "sign" || kind === "end") throw new Error(`a value was expected; ${HINT}`);
  if (kind !== "word") return text;
  if (/^(true|false)$/i.test(text)) return text.toLowerCase() === "true";
  const number = Number(text);
  return /^-?\d+(\.\d+)?([eE][+-]?\d+)?$/.test(text) && Math.abs(number) <= Number.MAX_SAFE_INTEGER ? number : text;
}

function tokensOf(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const from = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    if (match === null) throw new Error(`${JSON.stringify(text.slice(from))} can't be read; ${HINT}`);
    const [, double, single, sign, word] = match;
    if (double !== undefined) found.push({ text: double.replaceAll('""', '"'), kind: "name" });
    else if (single !== undefined) found.push({ text: single.replaceAll("''", "'"), kind: "text" });
    else found.push(sign !== undefined ? { text: sign, kind: "sign" } : { text: word, kind: "word" });
  }
  return found;
}
