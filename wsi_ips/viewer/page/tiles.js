// The tile table of a slide: typed arrays, and look-up of tiles by position.

export class TileTable {
  constructor(grid, buffer) {
    this.count = grid.count;
    this.origin = grid.origin_px0;
    this.stride = grid.stride_px0;
    this.footprint = grid.footprint_px0;
    this.patchPx = grid.patch_px;
    this.patchMpp = grid.patch_mpp;
    this.shown = grid.shown;
    this.columns = {};
    grid.columns.forEach(([name, type], number) => {
      const Kind = type === "i4" ? Int32Array : Float32Array;
      this.columns[name] = new Kind(buffer, number * 4 * grid.count, grid.count);
    });
    this.places = new Map();
    const { x, y } = this.columns;
    for (let tile = 0; tile < this.count; tile++) this.places.set(this.#cell(x[tile], y[tile]), tile);
  }

  #cell(x, y) {
    const column = Math.round((x - this.origin[0]) / this.stride[0]);
    return Math.round((y - this.origin[1]) / this.stride[1]) * 0x100000 + column;
  }

  /** The tile at a level-0 position, or null; where tiles overlap, the one with the nearest centre. */
  at(x, y) {
    const [width, height] = this.footprint;
    const tile = this.places.get(this.#cell(x - width / 2, y - height / 2));
    if (tile === undefined) return null;
    const box = this.box(tile);
    const inside = x >= box.x && y >= box.y && x < box.x + box.width && y < box.y + box.height;
    return inside ? tile : null;
  }

  box(tile) {
    const [width, height] = this.footprint;
    return { x: this.columns.x[tile], y: this.columns.y[tile], width, height };
  }

  centre(tile) {
    const box = this.box(tile);
    return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
  }

  /** Tiles with the highest values, best first; equal values stay in tile order. */
  best(name, count) {
    const values = this.columns[name];
    const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
    return order.slice(0, count);
  }
}
