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

  // A page that is kept for going back would hold its stream open, and a browser opens six connections to one server.
  let live = null;
  htmx.createEventSource = (url) => (live = new EventSource(url));
  addEventListener("pagehide", () => { if (live) live.close(); });
  addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });

  const chosen = () => [...document.querySelectorAll(".pick input:checked")];
  const recount = () => { const b = document.getElementById("compare"); if (b) b.disabled = chosen().length !== 2; };

  document.addEventListener("click", (e) => {
    const at = (s) => e.target.closest(s);
    if (at("[data-closes]")) sheet.close();
    if (e.target === sheet) sheet.close();
    const again = at("[data-form]"), form = document.getElementById("ask") || document.getElementById("teach");
    if (again && form) {
      const given = JSON.parse(again.dataset.form);
      for (const field of form.elements) if (field.name && field.name in given) field.value = field.name === "kind" ? given.what : given[field.name];
      if ("vary" in again.dataset) form.elements.seed.value = -1;
      form.requestSubmit();
      form.scrollIntoView({ block: "start" });
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
      const link = document.getElementById("to-train");
      link.href = "/studio/train?" + new URLSearchParams(new FormData(e.target.form));
    }
    if (e.target.matches("[data-divides]"))
      e.target.parentElement.querySelector(".top").style.clipPath = `inset(0 ${100 - e.target.value}% 0 0)`;
  });
  document.addEventListener("keydown", (e) => {
    const form = e.target.closest && e.target.closest("form#ask");
    if (form && e.key === "Enter" && (e.ctrlKey || e.metaKey)) form.requestSubmit();
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
