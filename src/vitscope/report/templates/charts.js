// Charts and colours of the page. Charts are drawn when they come near the screen, the rest when the
// browser is idle, so that the page opens quickly and prints completely.

const charts = JSON.parse(document.getElementById("charts").textContent);
const options = {
  ast: true, // expressions are interpreted: the page's policy forbids code made from text
  renderer: "svg",
  actions: false,
  defaultStyle: false,
  config: { legend: { layout: { top: { anchor: "start", bounds: "full" } } } }, // fits narrow charts
  tooltip: { disableDefaultStyle: true },
};
const views = new Map();

function draw(element) {
  if (!views.has(element)) {
    const drawn = window.vegaEmbed(element, charts[element.dataset.chart], options);
    views.set(element, drawn.then(({ view }) => view));
    drawn.then(() => element.classList.add("drawn"));
  }
  return views.get(element);
}

const waiting = new Set(document.querySelectorAll(".chart"));
const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        near.unobserve(target);
        waiting.delete(target);
        draw(target);
      }
    }
  },
  { rootMargin: "400px" },
);
waiting.forEach((element) => near.observe(element));

const whenIdle = window.requestIdleCallback ?? ((then) => setTimeout(then, 50));

async function drawRest() {
  const [next] = waiting;
  if (next === undefined) {
    document.documentElement.dataset.drawn = "all";
    return;
  }
  waiting.delete(next);
  near.unobserve(next);
  await draw(next);
  whenIdle(drawRest);
}
window.addEventListener("load", () => whenIdle(drawRest));

for (const choice of document.querySelectorAll("input[name=theme]")) {
  choice.addEventListener("change", () => {
    document.documentElement.dataset.theme = choice.value;
  });
}
