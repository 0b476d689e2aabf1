// A map over the slide: 8-bit values from the server, coloured here; threshold and opacity need no request.

const TISSUE_TONE = [232, 207, 223]; // below the colours of the legend

export class Layer {
  constructor(described, values) {
    Object.assign(this, described);
    this.values = values;
    this.opacity = 0.7;
    this.canvas = document.createElement("canvas");
    this.canvas.width = this.columns;
    this.canvas.height = this.rows;
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(this.columns, this.rows);
    this.table = new Uint32Array(256);
    this.shown = 0;
    this.colour();
  }

  /** Lowest value that is coloured. */
  get least() {
    return Math.max(this.lowest, 1 + Math.ceil(this.threshold * 254 - 1e-9));
  }

  /** Opacity of a score before the slider: H&E stays readable where scores are low. */
  opacityOf(score) {
    const [base, scale, power] = this.strength;
    return base + scale * score ** power;
  }

  setThreshold(threshold) {
    this.threshold = threshold;
    this.colour();
  }

  colourOf(value) {
    const score = (value - 1) / 254;
    const entry = 3 * Math.round(score * 255);
    const alpha = value >= this.least ? this.opacityOf(score) : 0;
    return [...this.palette.slice(entry, entry + 3), alpha];
  }

  colour() {
    for (let value = 1; value < 256; value++) {
      const [red, green, blue, alpha] = this.colourOf(value);
      this.table[value] = (Math.round(alpha * 255) << 24) | (blue << 16) | (green << 8) | red;
    }
    const pixels = new Uint32Array(this.image.data.buffer);
    const { values, table, least } = this;
    let shown = 0;
    for (let cell = 0; cell < values.length; cell++) {
      pixels[cell] = table[values[cell]];
      if (values[cell] >= least) shown++;
    }
    this.shown = shown;
    this.context.putImageData(this.image, 0, 0);
    this.edge = null;
  }

  /** Coloured area, mm². */
  area(mpp) {
    return mpp === null ? null : (this.shown * this.cell_px0[0] * mpp[0] * this.cell_px0[1] * mpp[1]) / 1e6;
  }

  /** Edge of the coloured area as a path in cells; a run of cells becomes one line. */
  contour() {
    if (this.edge) return this.edge;
    const path = new Path2D();
    const { values, columns, rows, least } = this;
    const found = (column, row) =>
      column >= 0 && row >= 0 && column < columns && row < rows && values[row * columns + column] >= least;
    for (let row = 0; row <= rows; row++) {
      const isEdge = (column) => found(column, row - 1) !== found(column, row);
      for (const [from, to] of runs(columns, isEdge)) {
        path.moveTo(from, row);
        path.lineTo(to, row);
      }
    }
    for (let column = 0; column <= columns; column++) {
      const isEdge = (row) => found(column - 1, row) !== found(column, row);
      for (const [from, to] of runs(rows, isEdge)) {
        path.moveTo(column, from);
        path.lineTo(column, to);
      }
    }
    this.edge = path;
    return path;
  }

  /** Draw the legend: colours at the current opacity over the tone of tissue. */
  drawLegend(canvas) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(256, 1);
    for (let value = 0; value < 256; value++) {
      const [red, green, blue, alpha] = this.colourOf(Math.max(1, value));
      const strength = alpha * this.opacity;
      [red, green, blue].forEach((colour, channel) => {
        image.data[4 * value + channel] = colour * strength + TISSUE_TONE[channel] * (1 - strength);
      });
      image.data[4 * value + 3] = 255;
    }
    canvas.width = 256;
    canvas.height = 1;
    context.putImageData(image, 0, 0);
  }

  /** The threshold in words. */
  thresholdText() {
    if (!this.comparable) return `top ${Math.round(100 - this.threshold * 100)} %`;
    return `from ${this.threshold.toFixed(2)}`;
  }
}

/** Yield runs of positions for which a condition holds, as [first, one after the last]. */
function* runs(count, holds) {
  let start = -1;
  for (let at = 0; at <= count; at++) {
    const does = at < count && holds(at);
    if (does && start < 0) start = at;
    if (!does && start >= 0) {
      yield [start, at];
      start = -1;
    }
  }
}
