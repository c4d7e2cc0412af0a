// The copy button of a console block copies its commands, without prompts and without what they print.
function readCommands(text) {
  const commands = [];
  for (const line of text.split("\n")) {
    const goesOn = commands.at(-1)?.endsWith("\\");
    if (line.startsWith("$ ") || goesOn) commands.push(line.replace(/^[$>] /, ""));
  }
  return commands.join("\n");
}

document.addEventListener(
  "click",
  ({ target }) => {
    const button = target.closest("[data-clipboard-target]");
    const commands = button && readCommands(document.querySelector(button.dataset.clipboardTarget).textContent);
    if (commands) button.dataset.clipboardText = commands;
  },
  { capture: true }, // before the site's own listener, which copies this text
);
