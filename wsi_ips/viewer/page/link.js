// Deep links: #slide=ID&x=…&y=…&zoom=…&layer=…&right=…; x and y are the centre of the view in level-0 pixels, zoom is
// screen pixels per level-0 pixel.

export function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name) => {
    const value = Number.parseFloat(given.get(name));
    return Number.isFinite(value) ? value : null;
  };
  return {
    slide: given.get("slide"),
    x: number("x"),
    y: number("y"),
    zoom: number("zoom"),
    layer: given.get("layer"),
    right: given.get("right"),
  };
}

export function write(place, { replace }) {
  const text = new URLSearchParams();
  text.set("slide", place.slide);
  if (place.x !== null && place.x !== undefined) {
    text.set("x", Math.round(place.x));
    text.set("y", Math.round(place.y));
    text.set("zoom", Number(place.zoom.toPrecision(4)));
  }
  if (place.layer) text.set("layer", place.layer);
  if (place.right) text.set("right", place.right);
  const hash = `#${text}`;
  if (hash === location.hash) return;
  history[replace ? "replaceState" : "pushState"](null, "", hash);
}
