// Number formats for people, and a function that makes elements.

export function probability(value) {
  if (value === null || value === undefined) return "";
  if (value >= 0.9995 && value < 1) return "> 0.999";
  if (value > 0 && value < 0.0005) return "< 0.001";
  return value.toFixed(3);
}

export function length(um) {
  return um < 1000 ? `${um} µm` : `${um / 1000} mm`;
}

const STEPS = [1, 2, 5];

/** The longest round length, in µm, that fits into a number of pixels. */
export function roundLength(umPerPx, roomPx) {
  const room = umPerPx * roomPx;
  const power = 10 ** Math.floor(Math.log10(room));
  const fitting = STEPS.filter((step) => step * power <= room);
  return Number((fitting[fitting.length - 1] * power).toPrecision(1));
}

/** Magnification by the usual convention: 10 µm/px is 1x, 0.25 µm/px is 40x. */
export function magnification(umPerPx) {
  const times = 10 / umPerPx;
  return `${times < 10 ? times.toFixed(1) : Math.round(times)}×`;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
