// Elements and small charts. Whatever comes from the database is text, never markup.

export const $ = (id) => document.getElementById(id);

export function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** A chart of numbers, oldest first; null is a hole. `draw` sets them anew; the scale begins at 0 and has at least `least`. */
export function chart(label, width = 120, height = 24) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "chart");
  svg.setAttribute("role", "img");
  const area = document.createElementNS(SVG, "path");
  const line = document.createElementNS(SVG, "path");
  area.setAttribute("class", "area");
  line.setAttribute("class", "line");
  svg.append(area, line);
  const draw = (values, least = 1, told = "") => {
    svg.setAttribute("aria-label", told ? `${label}: ${told}` : label);
    const top = Math.max(least, ...values.map((value) => value ?? 0));
    const x = (i) => ((i * width) / Math.max(1, values.length - 1)).toFixed(1);
    const y = (value) => (height - 1 - (value / top) * (height - 3)).toFixed(1);
    let outline = "";
    let filled = "";
    let begun = null;
    values.forEach((value, i) => {
      if (value === null) {
        begun = null;
        return;
      }
      // A point without neighbours is a dot.
      outline += begun === null ? `M${x(i)} ${y(value)}h.01` : `L${x(i)} ${y(value)}`;
      if (begun === null) filled += `M${x(i)} ${height}`;
      filled += `L${x(i)} ${y(value)}`;
      if (i + 1 === values.length || values[i + 1] === null) filled += `L${x(i)} ${height}Z`;
      begun = i;
    });
    line.setAttribute("d", outline);
    area.setAttribute("d", filled);
  };
  draw([]);
  return { svg, draw };
}

export function rateText(rate) {
  return rate === 0 ? "0" : rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}

export function lagText(ms) {
  if (ms < 1) return "0 ms";
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} d`;
}

export function sizeText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}
