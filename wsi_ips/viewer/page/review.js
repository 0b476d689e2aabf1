// Review form of a slide; saved at once.

import * as api from "./api.js";

export class ReviewForm {
  /** @param kept  called with the slide's id and its review as stored */
  constructor(kept) {
    this.kept = kept;
    this.queue = Promise.resolve();
    this.waiting = 0;
    this.section = document.getElementById("review");
    this.form = document.getElementById("review-form");
    this.note = document.getElementById("note");
    this.reviewer = document.getElementById("reviewer");
    this.saved = document.getElementById("saved");
    this.buttons = [...this.form.querySelectorAll("[data-verdict]")];
    this.reviewer.value = localStorage.getItem("reviewer") ?? "";
    this.reviewer.addEventListener("change", () => localStorage.setItem("reviewer", this.reviewer.value.trim()));
    for (const button of this.buttons) button.addEventListener("click", () => this.say(button.dataset.verdict));
    this.note.addEventListener("change", () => this.save());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
  }

  fill(id, review, allowed) {
    this.id = id;
    this.section.hidden = !allowed;
    this.verdict = review?.verdict ?? "";
    this.note.value = review?.note ?? "";
    this.last = { verdict: this.verdict, note: this.note.value };
    this.#draw();
    this.saved.textContent = review ? said(review) : "Not reviewed yet.";
  }

  /** Set a verdict; the same verdict again removes it. */
  say(verdict) {
    if (this.section.hidden) return;
    this.verdict = this.verdict === verdict ? "" : verdict;
    this.#draw();
    this.save();
  }

  save() {
    const given = { verdict: this.verdict, note: this.note.value.trim() };
    const same = given.verdict === this.last.verdict && given.note === this.last.note;
    if (same || !this.id) return;
    const { id } = this;
    this.last = given;
    this.saved.textContent = "Saving …";
    const reviewer = this.reviewer.value.trim();
    this.waiting += 1;
    this.queue = this.queue.then(() => this.#send(id, { ...given, reviewer })); // in order, so that the last one wins
  }

  async #send(id, given) {
    try {
      const review = await api.review(id, given);
      this.kept(id, review);
      if (id === this.id && this.waiting === 1) this.saved.textContent = said(review);
    } catch (error) {
      if (id === this.id) {
        this.last = { verdict: null, note: null }; // Save tries again
        this.saved.textContent = `Not saved: ${error.message}`;
      }
    }
    this.waiting -= 1;
  }

  #draw() {
    for (const button of this.buttons) button.setAttribute("aria-pressed", button.dataset.verdict === this.verdict);
  }
}

function said(review) {
  const time = new Date(review.time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return `Saved ${time}${review.reviewer ? ` by ${review.reviewer}` : ""}.`;
}
