// Making elements. Text is all that data ever becomes: the page's policy allows no HTML.

export function make<Tag extends keyof HTMLElementTagNameMap>(tag: Tag, className: string, ...children: (Node | string)[]): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function find<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  return document.getElementById(id) as Kind;
}

export function button(text: string, title: string, run: () => unknown): HTMLButtonElement {
  const element = make("button", "", text);
  element.type = "button";
  element.title = title;
  element.addEventListener("click", () => void run());
  return element;
}

/** Shows JSON with a colour for names, texts and numbers. */
export function showJson(element: HTMLElement, json: string): void {
  const parts: (Node | string)[] = [];
  let at = 0;
  for (const match of json.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g)) {
    parts.push(json.slice(at, match.index));
    const [whole, text, colon] = match;
    if (text === undefined) parts.push(make("span", "number", whole));
    else parts.push(make("span", colon === undefined ? "text" : "name", text), colon ?? "");
    at = match.index + whole.length;
  }
  element.replaceChildren(...parts, json.slice(at));
}
