"use strict";
(() => {
  const root = document.documentElement, sheet = document.getElementById("sheet"), theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark")) === "dark";
  const label = () => { theme.textContent = isDark() ? theme.dataset.light : theme.dataset.dark; };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    label();
  });
  label();

  // A browser opens six connections to one server: a page that nobody looks at gives its stream back, and asks for what it missed when shown.
  class Stream extends EventTarget {
    constructor(url) {
      super();
      Object.assign(this, { url, kinds: new Set(), source: null, last: "", readyState: 0 });
      this.tell = (e) => { this.last = e.lastEventId || this.last; this.dispatchEvent(new MessageEvent(e.type, { data: e.data })); };
      document.addEventListener("visibilitychange", () => this.look());
      addEventListener("pagehide", () => this.close());
      this.look();
    }
    look() {
      if (document.hidden) return this.close();
      if (this.source) return;
      this.source = new EventSource(this.url + (this.last && "?after=" + this.last));
      this.source.onerror = () => { if (this.source && this.source.readyState === 2) { this.close(); setTimeout(() => this.look(), 2000); } };
      this.kinds.forEach((kind) => this.source.addEventListener(kind, this.tell));
    }
    addEventListener(kind, listener) {
      super.addEventListener(kind, listener);
      if (!this.kinds.has(kind) && this.source) this.source.addEventListener(kind, this.tell);
      this.kinds.add(kind);
    }
    close() { if (this.source) this.source.close(); this.source = null; }
  }
  htmx.createEventSource = (url) => new Stream(url);
  addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });

  const fill = (form, given, vary) => {
    const told = { mode: "one", x: "", y: "", z: "", ...given, ...(vary && { seed: -1 }) };
    for (const field of form.elements) {
      if (field.type === "file" || !(field.name in told)) continue;
      if (field.type === "radio") field.checked = field.value === told[field.name]; else field.value = told[field.name];
    }
    form.requestSubmit();
    form.scrollIntoView({ block: "start" });
  };

  const chosen = () => [...document.querySelectorAll(".pick input:checked")];
  const recount = () => { const b = document.getElementById("compare"); if (b) b.disabled = chosen().length !== 2; };

  document.addEventListener("click", (e) => {
    const at = (s) => e.target.closest(s);
    if (at("[data-closes]")) sheet.close();
    if (e.target === sheet) sheet.close();
    const again = at("[data-form]"), form = document.getElementById("ask");
    if (again && form && !e.ctrlKey && !e.metaKey) {
      e.preventDefault();
      fill(form, JSON.parse(again.dataset.form), "vary" in again.dataset);
    }
    if (at("#score")) {
      const picture = [...document.querySelectorAll(".pick input:not([data-scored])")].slice(0, 96).map((i) => `${i.dataset.job} ${i.value}`);
      htmx.ajax("POST", "/studio/gallery/score", { target: "#scoring", swap: "innerHTML", values: { picture } });
    }
    if (at("#compare")) {
      const [a, b] = chosen().map((i) => encodeURIComponent(i.value));
      htmx.ajax("GET", `/studio/gallery/compare?a=${a}&b=${b}`, "#sheet-body").then(() => sheet.showModal());
    }
  });
  document.addEventListener("change", (e) => { if (e.target.matches(".pick input")) recount(); });
  document.addEventListener("input", (e) => {
    const slide = e.target.closest(".slide");
    if (slide) slide.querySelector("output").value = e.target.value;
    if (e.target.closest("#sort")) {
      for (const link of document.querySelectorAll("[data-along]"))
        link.href = link.pathname + "?" + new URLSearchParams(new FormData(e.target.form));
    }
    if (e.target.matches("[data-divides]")) {
      const over = e.target.parentElement.querySelector(".over");
      over.querySelector(".top").style.clipPath = `inset(0 ${100 - e.target.value}% 0 0)`;
      over.querySelector(".seam").style.left = `${e.target.value}%`;
    }
  });
  document.addEventListener("change", (e) => { if (e.target.matches("[data-sends]")) e.target.form.requestSubmit(); });

  // Keys. Single letters count outside of fields alone, and can be switched off in the list that "?" shows.
  const keys = document.getElementById("keys"), letters = document.getElementById("letters");
  letters.checked = localStorage.getItem("letters") !== "off";
  letters.addEventListener("change", () => localStorage.setItem("letters", letters.checked ? "on" : "off"));
  document.getElementById("show-keys").addEventListener("click", () => keys.showModal());
  keys.addEventListener("click", (e) => { if (e.target === keys || e.target.closest("[data-closes]")) keys.close(); });

  let opened = null;
  const pictures = () => [...document.querySelectorAll("main [data-opens]")];
  const turn = (by) => {
    const all = pictures(), to = all[all.indexOf(opened) + by];
    if (to) { opened = to; htmx.trigger(to, "click"); }
  };
  document.addEventListener("click", (e) => { opened = e.target.closest("[data-opens]") || opened; }, true);
  const walk = (by) => {
    const all = pictures(), now = all.indexOf(document.activeElement);
    const to = all[Math.max(0, Math.min(all.length - 1, now < 0 ? 0 : now + by))];
    if (to) to.focus();
  };
  const does = {
    "?": () => keys.showModal(),
    "/": () => (document.querySelector("main input[type=search], main #prompt, main input:not([type=hidden])") || root).focus(),
    j: () => walk(1), k: () => walk(-1),
    x: () => { const box = document.activeElement.closest("figure")?.querySelector(".pick input"); if (box) box.click(); },
    c: () => document.getElementById("compare")?.click(),
    s: () => document.getElementById("score")?.click(),
  };
  document.addEventListener("keydown", (e) => {
    const form = e.target.closest && e.target.closest("form#ask");
    if (form && e.key === "Enter" && (e.ctrlKey || e.metaKey)) form.requestSubmit();
    if (sheet.open && !e.target.matches("input") && (e.key === "ArrowLeft" || e.key === "ArrowRight")) turn(e.key === "ArrowLeft" ? -1 : 1);
    if (sheet.open || keys.open || e.ctrlKey || e.metaKey || e.altKey || !letters.checked) return;
    if (e.target.matches("input:not([type=checkbox]), select, textarea")) return;
    const page = document.querySelectorAll(".bar nav a")[e.key - 1];
    if (!(e.key in does) && !page) return;
    e.preventDefault();
    if (page) page.click(); else does[e.key]();
  });
  document.body.addEventListener("htmx:afterSwap", (e) => {
    const into = (e.detail.target || e.target).id, made = document.getElementById("made");
    if (into === "sheet-body" && !sheet.open) sheet.showModal();
    if (into === "made") {
      made.querySelectorAll(":scope > .error").forEach((x) => { if (x !== made.firstElementChild) x.remove(); });
      if (made.querySelector(".card")) made.querySelectorAll(":scope > .empty").forEach((x) => x.remove());
    }
    recount();
  });
})();
