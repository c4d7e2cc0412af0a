// A browser that prints without waiting still prints everything: charts, gallery, and what is folded; or the image in
// the large view alone.

let folded = [];

window.addEventListener("beforeprint", () => {
  const paper = view.dialog.open ? view.dialog : document;
  folded = Array.from(paper.querySelectorAll("details:not([open])"));
  for (const details of folded) details.open = true;
  if (paper === view.dialog) {
    fillLayers();
    return;
  }
  waiting.forEach(draw);
  fillAll();
});
window.addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
