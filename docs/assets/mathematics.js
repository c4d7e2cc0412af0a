// Sets what Markdown wrote as $…$ and $$…$$; KaTeX lies beside this file, nothing is fetched.
for (const element of document.querySelectorAll(".arithmatex")) {
  const [, display, source] = element.textContent.match(/^\\([[(])([^]*)\\[\])]$/);
  katex.render(source, element, { displayMode: display === "[", throwOnError: true });
}
