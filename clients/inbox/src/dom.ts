// The little of a view library that the element needs: making nodes, and setting what differs.

export type Child = Node | string;

/** Makes an element. */
export function make<Tag extends keyof HTMLElementTagNameMap>(tag: Tag, attributes: Readonly<Record<string, string>> = {}, ...children: Child[]): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Makes a slot with what is shown where the page gives nothing. */
export function slot(name: string, ...children: Child[]): HTMLSlotElement {
  return make("slot", { name }, ...children);
}

/** Sets an attribute, or removes it where the value is null, if it is another one. */
export function attribute(element: Element, name: string, value: string | null): void {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** Sets the text, if it is another one. Text is all that data ever becomes here. */
export function text(element: Element, value: string): void {
  if (element.textContent !== value) element.textContent = value;
}

export function show(element: HTMLElement, isShown: boolean): void {
  if (element.hidden === isShown) element.hidden = !isShown;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon of 24 units that is drawn with lines. */
export function icon(path: string): SVGElement {
  const svg = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const icons = {
  bell: "M6 9a6 6 0 1 1 12 0c0 3.6.8 5.5 1.6 6.6a.9.9 0 0 1-.7 1.4H5.1a.9.9 0 0 1-.7-1.4C5.2 14.500 6 12.600 6 9M9.800 20.300a2.500 2.500 0 0 0 4.400 0",
  check: "m5 12.500 4.500 4.500L19 7.500",
  checks: "m2.500 12.500 4.300 4.300 9-9M11.800 15.600l1.400 1.400 8.300-8.700",
  remove: "M4.500 7h15M9.500 7V4.800a.8.8 0 0 1 .8-.8h3.400a.8.8 0 0 1 .8.8V7M6.500 7l.7 11.700a1.300 1.300 0 0 0 1.300 1.300h7a1.300 1.300 0 0 0 1.300-1.300L17.500 7M10.200 11v5M13.800 11v5",
  close: "M6.500 6.500l11 11M17.500 6.500l-11 11",
  up: "M12 19V5.500M6 11l6-6 6 6",
} as const;
