// What can be taken out of the page: charts as SVG and PNG, maps as PNG, tables as CSV and for a spreadsheet.

function nameFile(...words) {
  return words.join(" ").replace(/[^\p{L}\p{N}._]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 100);
}

function save(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copy(button, text) {
  const before = button.textContent;
  const writing = navigator.clipboard?.writeText(text) ?? Promise.reject(); // a page of http has no clipboard
  const done = await writing.then(() => "Copied", () => "Not copied: the browser refused");
  button.textContent = done;
  setTimeout(() => (button.textContent = before), 1200);
}

function makeButtons(of, actions) {
  const buttons = Object.entries(actions).map(([textContent, act]) =>
    make("button", { type: "button", textContent, "aria-label": `${textContent}: ${of}`, onclick: ({ currentTarget }) => act(currentTarget) }),
  );
  return make("p", { className: "exports" }, ...buttons);
}

// Vega's drawing with the page's colours in place of their names: light ones, on white.
async function drawSvg(chart, title) {
  const probe = make("span");
  probe.style.colorScheme = "light";
  document.body.append(probe);
  const text = (await (await draw(chart)).toSVG()).replace(/var\(--[\w-]+\)/g, (name) => {
    probe.style.color = name;
    return getComputedStyle(probe).color;
  });
  probe.remove();
  const drawing = new DOMParser().parseFromString(text, "image/svg+xml");
  const makeSvg = (tag) => drawing.createElementNS("http://www.w3.org/2000/svg", tag);
  const [named, paper] = [makeSvg("title"), makeSvg("rect")];
  named.textContent = title;
  for (const [key, value] of [["width", "100%"], ["height", "100%"], ["fill", "#ffffff"]]) paper.setAttribute(key, value);
  drawing.documentElement.prepend(named, paper);
  return new XMLSerializer().serializeToString(drawing);
}

const pngScale = 3; // pixels of the file for one of the page

async function drawPng(svg) {
  const image = make("img", { src: `data:image/svg+xml,${encodeURIComponent(svg)}` });
  await image.decode();
  const canvas = new OffscreenCanvas(pngScale * image.width, pngScale * image.height);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob();
}

function offerChart(panel) {
  const [figure, chart] = [panel.closest("figure"), panel.querySelector(".chart")];
  const of = panel.querySelector("h4").textContent;
  const title = `${figure.querySelector("h3").textContent} ${of}`;
  const name = () => nameFile(figure.id, figure.querySelector("select")?.value ?? "", of);
  const saveSvg = async () => save(`${name()}.svg`, new Blob([await drawSvg(chart, title)], { type: "image/svg+xml" }));
  const savePng = async () => save(`${name()}.png`, await drawPng(await drawSvg(chart, title)));
  panel.append(makeButtons(title, { SVG: saveSvg, PNG: savePng }));
}

const isNumber = /^[−+]?\d[\d,]*(\.\d+)?$/;

// Its value, the ends of its interval, and the words before it, such as “at most”.
function readCell(cell) {
  const text = cell.textContent;
  const { numbers } = cell.dataset;
  if (numbers === undefined) return [isNumber.test(text) ? text.replace(/,/g, "").replace("−", "-") : text];
  const [value = "", low = "", high = ""] = numbers.split(" ");
  return [value, low, high, text.match(/^[^\d−+–]*/)[0].replace(/[: ]+$/, "")];
}

// A column of numbers with intervals becomes one for each of their parts that it has.
function readTable(table) {
  const [head, ...body] = Array.from(table.rows, (row) => [...row.cells]);
  const columns = head.flatMap(({ textContent: name }, index) => {
    const cells = body.map((row) => readCell(row[index]));
    return ["", " low", " high", " note"]
      .map((part, at) => [name + part, ...cells.map((cell) => cell[at] ?? "")])
      .filter((column, at) => at === 0 || column.slice(1).some(Boolean));
  });
  return columns[0].map((_, row) => columns.map((column) => column[row]));
}

// A spreadsheet would run text that begins like a formula.
const disarm = (text) => (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text);
const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
const writeTabs = (rows) => rows.map((row) => row.map((cell) => disarm(cell).replace(/\s/g, " ")).join("\t")).join("\n");

function saveCsv(name, rows) {
  const lines = rows.map((row) => row.map((cell) => quote(disarm(cell))).join(",") + "\r\n");
  save(`${name}.csv`, new Blob(lines, { type: "text/csv" }));
}

function offerTable(table) {
  const { name } = table.dataset;
  const actions = {
    CSV: () => saveCsv(nameFile(name), readTable(table)),
    Copy: (button) => copy(button, writeTabs(readTable(table))),
  };
  table.parentElement.before(makeButtons(name, actions));
}

for (const text of document.querySelectorAll("pre")) {
  text.before(makeButtons(text.dataset.name, { Copy: (button) => copy(button, text.textContent) }));
}
for (const panel of document.querySelectorAll(".panel")) offerChart(panel);
for (const table of document.querySelectorAll("table[data-name]")) offerTable(table);
