// The list of slides, with sorting and search.

import { element, probability } from "./format.js";

const TEXT = (name) => (slide) => slide[name] ?? "";
const COLUMNS = [
  { key: "slide", title: "Slide", of: TEXT("slide_id") },
  { key: "suspicion", title: "Suspicion", of: (slide) => slide.probability ?? -1, descends: true },
  { key: "label", title: "Label", of: TEXT("label") },
  { key: "state", title: "State", of: TEXT("state") },
  { key: "review", title: "Review", of: (slide) => slide.review?.verdict || (slide.review ? "note" : "") },
];
const collator = new Intl.Collator(undefined, { numeric: true });

export class Worklist {
  /** @param chosen  called with the id of a slide */
  constructor(chosen) {
    this.chosen = chosen;
    this.slides = [];
    this.shown = [];
    this.current = null;
    this.sort = { key: "suspicion", descends: true };
    this.columns = document.getElementById("columns");
    this.rows = document.getElementById("rows");
    this.count = document.getElementById("count");
    this.search = document.getElementById("search");
    this.search.addEventListener("input", () => this.draw());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.shown.length) this.chosen(this.shown[0].slide_id);
    });
  }

  fill(slides, classes) {
    this.slides = slides;
    this.classes = classes;
    const used = (column) => column.key === "slide" || slides.some((slide) => ![-1, ""].includes(column.of(slide)));
    this.used = COLUMNS.filter((column) => used(column) || (column.key === "review" && classes.length));
    if (!this.used.some((column) => column.key === this.sort.key)) this.sort = { key: "slide", descends: false };
    this.#drawHead();
    this.draw();
  }

  find(id) {
    return this.slides.find((slide) => slide.slide_id === id) ?? null;
  }

  /** Id of the slide a number of rows below the current one in the shown list. */
  beside(step) {
    const at = this.shown.findIndex((slide) => slide.slide_id === this.current);
    return this.shown[at < 0 ? 0 : at + step]?.slide_id ?? null;
  }

  setCurrent(id) {
    this.current = id;
    for (const row of this.rows.children) {
      const isCurrent = row.dataset.slide === id;
      row.classList.toggle("current", isCurrent);
      row.querySelector("a").toggleAttribute("aria-current", isCurrent);
      if (isCurrent) row.querySelector("a").setAttribute("aria-current", "true");
      if (isCurrent) row.scrollIntoView({ block: "nearest" });
    }
  }

  #drawHead() {
    const heads = this.used.map(({ key, title, descends = false }) => {
      const sorted = this.sort.key === key;
      const order = this.sort.descends ? "descending" : "ascending";
      const sort = () => {
        this.sort = { key, descends: sorted ? !this.sort.descends : descends };
        this.#drawHead();
        this.draw();
        this.columns.querySelector(`[data-sort="${key}"]`).focus();
      };
      const arrow = element("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (this.sort.descends ? "▾" : "▴") : "");
      const button = element("button", { type: "button", "data-sort": key, onclick: sort }, title, arrow);
      return element("th", { scope: "col", class: `col-${key}`, "aria-sort": sorted ? order : "none" }, button);
    });
    this.columns.replaceChildren(...heads);
  }

  draw() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (slide) =>
      [slide.slide_id, slide.label, slide.predicted, slide.state, slide.split, slide.reason]
        .concat(slide.review ? [slide.review.verdict, slide.review.note, "reviewed"] : ["unreviewed"])
        .join(" ")
        .toLowerCase();
    const found = this.slides.filter((slide) => words.every((word) => text(slide).includes(word)));
    const { of } = COLUMNS.find((column) => column.key === this.sort.key);
    const sign = this.sort.descends ? -1 : 1;
    const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
    this.shown = found.sort(
      (a, b) => sign * compare(of(a), of(b)) || collator.compare(a.slide_id, b.slide_id),
    );
    this.rows.replaceChildren(...this.shown.map((slide) => this.#row(slide)));
    const all = this.slides.length;
    this.count.textContent = this.shown.length === all ? `${all} slides` : `${this.shown.length} of ${all} slides`;
    this.setCurrent(this.current);
  }

  #row(slide) {
    const id = slide.slide_id;
    const open = (event) => {
      event.preventDefault();
      this.chosen(id);
    };
    const link = element("a", { href: `#slide=${encodeURIComponent(id)}`, onclick: open, title: slide.reason || id }, id);
    const cells = {
      slide: () => [link],
      suspicion: () => suspicion(slide.probability),
      label: () => [slide.label, differs(slide)],
      state: () => [element("span", { class: `state ${slide.state}` }, slide.state)],
      review: () => [reviewMark(slide.review)],
    };
    const row = element("tr", { "data-slide": id, onclick: open });
    row.append(...this.used.map(({ key }) => element(key === "slide" ? "th" : "td", { scope: key === "slide" ? "row" : null, class: `col-${key}` }, ...cells[key]())));
    return row;
  }
}

function suspicion(value) {
  if (value === null) return [];
  const bar = element("meter", { min: 0, max: 1, value, "aria-hidden": "true" });
  return [element("span", { class: "number" }, probability(value)), bar];
}

function differs(slide) {
  if (!slide.label || !slide.predicted || slide.label === slide.predicted) return null;
  const text = `The model says ${slide.predicted}`;
  return element("span", { class: "differs", title: text, role: "img", "aria-label": text }, "≠");
}

function reviewMark(review) {
  if (!review) return null;
  const signs = { agree: "✓", disagree: "✗", "": "✎" };
  const text = [review.verdict || "note", review.reviewer && `by ${review.reviewer}`, review.note].filter(Boolean).join(" · ");
  return element("span", { class: `mark ${review.verdict}`, title: text, role: "img", "aria-label": text }, signs[review.verdict]);
}
