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
  for (const note of document.querySelectorAll(".paper")) {
    const { options, selectedOptions } = document.getElementById(note.dataset.of);
    note.textContent = options.length > 1 ? `Of ${options.length} results, this is ${selectedOptions[0].label}: choose another under Model, then print.` : "";
  }
  waiting.forEach(draw);
  fillAll();
});
window.addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
