// A browser that prints without waiting still prints everything: charts, gallery, and what is folded.

let folded = [];

window.addEventListener("beforeprint", () => {
  waiting.forEach(draw);
  fillAll();
  folded = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of folded) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
