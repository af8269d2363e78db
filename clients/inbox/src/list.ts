// A list of any length in a few nodes: rows are made where they can be seen, wherever each of them is as high as its text.
//
// Rows are measured as soon as they are made; those that were never seen count as the mean of the others. What a person looks at stays where
// it is, whatever comes above it or turns out to be higher.

/** What the list shows of one row. */
export interface RowView<T> {
  readonly element: HTMLElement;
  /** Takes a new value, or place. */
  update(row: T, index: number, length: number): void;
  /** What the arrow keys focus. */
  readonly control: HTMLElement;
  /** Puts the controls of this row into the tab order, or takes them out. */
  setCurrent(isCurrent: boolean): void;
  /** Whether the node is in this row, also where the page gave it. */
  contains(node: Node): boolean;
  remove(): void;
}

export interface ListHooks<T> {
  make(row: T): RowView<T>;
  /** The last rows are near. */
  nearEnd(): void;
  /** What is visible changed. */
  scrolled(): void;
}

/** Pixels beyond both edges where rows are made. */
const AHEAD = 400;
/** Rows before the end where older ones are asked for. */
const END_ROWS = 8;
const GUESS = 76;

interface Anchor {
  readonly id: string;
  /** Pixels from the top of the row to the top of what is visible. */
  readonly delta: number;
}

export class VirtualList<T extends { readonly id: string }> {
  readonly #scroller: HTMLElement;
  readonly #box: HTMLElement;
  readonly #hooks: ListHooks<T>;
  #rows: readonly T[] = [];
  #index = new Map<string, number>();
  #views = new Map<string, RowView<T>>();
  #heights = new Map<string, number>();
  #guess = GUESS;
  #isGuessKnown = false;
  /** The top of each row, and the end of the last. */
  #tops = new Float64Array(1);
  #width = 0;
  #current: string | null = null;
  #frame = 0;
  readonly #observer: ResizeObserver;

  /** `box` is inside of `scroller` and holds the rows. */
  constructor(scroller: HTMLElement, box: HTMLElement, hooks: ListHooks<T>) {
    this.#scroller = scroller;
    this.#box = box;
    this.#hooks = hooks;
    this.#observer = new ResizeObserver(() => this.#later());
    scroller.addEventListener("scroll", () => this.#later(), { passive: true });
    box.addEventListener("focusin", (event) => this.#focused(event));
    box.addEventListener("keydown", (event) => this.#key(event));
  }

  get rows(): readonly T[] {
    return this.#rows;
  }

  /** How far the list is scrolled. */
  get isScrolled(): boolean {
    return this.#scroller.scrollTop > 24;
  }

  connect(): void {
    this.#observer.observe(this.#scroller);
  }

  disconnect(): void {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  /** Shows these rows, in this order. */
  set(rows: readonly T[]): void {
    const anchors = this.#anchors();
    const focused = this.#focusedId();
    const at = focused === null ? -1 : (this.#index.get(focused) ?? -1);
    this.#rows = rows;
    this.#index = new Map(rows.map((row, index) => [row.id, index]));
    if (this.#heights.size > 2 * rows.length + 200) {
      for (const id of this.#heights.keys()) if (!this.#index.has(id)) this.#heights.delete(id);
    }
    this.#layOut();
    this.#restore(anchors);
    this.render();
    // The row that had the focus is gone: its neighbour has it.
    if (at >= 0 && focused !== null && !this.#index.has(focused)) this.focus(Math.min(at, rows.length - 1));
  }

  /** Makes the rows that can be seen, takes the others away, and measures. */
  render(): void {
    const { clientHeight, clientWidth } = this.#scroller;
    if (clientHeight === 0) return;
    if (clientWidth !== this.#width) {
      // Every text breaks at another place.
      this.#width = clientWidth;
      this.#heights.clear();
      this.#isGuessKnown = false;
    }
    // Rows that are higher than guessed leave fewer to be made: a few turns settle it.
    for (let turn = 0; turn < 4; turn++) {
      const anchors = this.#anchors();
      this.#fill(clientHeight);
      if (!this.#measure()) break;
      this.#layOut();
      this.#restore(anchors);
    }
    for (const [id, { element }] of this.#views) {
      const top = `translateY(${this.#tops[this.#index.get(id)!]!}px)`;
      if (element.style.transform !== top) element.style.transform = top;
    }
    this.#hooks.scrolled();
    if (this.#at(this.#scroller.scrollTop + clientHeight) >= this.#rows.length - END_ROWS) this.#hooks.nearEnd();
  }

  toTop(): void {
    this.#scroller.scrollTop = 0;
    this.render();
  }

  /** Gives a row the focus; without one, the list itself. */
  focus(index: number): void {
    const row = this.#rows[index];
    if (!row) {
      this.#scroller.focus();
      return;
    }
    this.#current = row.id;
    const { scrollTop, clientHeight } = this.#scroller;
    const top = this.#tops[index]!;
    const bottom = this.#tops[index + 1]!;
    if (top < scrollTop) this.#scroller.scrollTop = top;
    else if (bottom > scrollTop + clientHeight) this.#scroller.scrollTop = bottom - clientHeight;
    this.render();
    // It was not measured before: its end may be out of sight.
    this.#views.get(row.id)?.control.focus({ preventScroll: true });
    this.#views.get(row.id)?.element.scrollIntoView({ block: "nearest" });
  }

  /** Calls `run` with each row that is made. */
  each(run: (view: RowView<T>, row: T) => void): void {
    for (const [id, view] of this.#views) run(view, this.#rows[this.#index.get(id)!]!);
  }

  #later(): void {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#forgetChanged();
      this.render();
    });
  }

  /** Rows whose height changed by themselves, such as by an image that came. */
  #forgetChanged(): void {
    for (const [id, { element }] of this.#views) {
      if (Math.abs((this.#heights.get(id) ?? 0) - element.offsetHeight) >= 1) this.#heights.delete(id);
    }
  }

  #layOut(): void {
    const rows = this.#rows;
    const tops = new Float64Array(rows.length + 1);
    let top = 0;
    for (let index = 0; index < rows.length; index++) {
      tops[index] = top;
      top += this.#heights.get(rows[index]!.id) ?? this.#guess;
    }
    tops[rows.length] = top;
    this.#tops = tops;
    this.#box.style.height = `${top}px`;
  }

  /** The row at this height. */
  #at(top: number): number {
    let low = 0;
    let high = this.#rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1]! <= top) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #fill(clientHeight: number): void {
    const rows = this.#rows;
    const { scrollTop } = this.#scroller;
    const first = this.#at(scrollTop - AHEAD);
    const last = Math.min(rows.length - 1, this.#at(scrollTop + clientHeight + AHEAD));
    const wanted = new Set<number>();
    for (let index = first; index <= last; index++) wanted.add(index);
    // Who reads with the keyboard stays where they are, also while others scroll.
    const focused = this.#index.get(this.#focusedId() ?? "");
    if (focused !== undefined) wanted.add(focused);
    // Without that, the tab order leads to what is in sight.
    const current = focused ?? this.#index.get(this.#current ?? "") ?? -1;
    const seen = this.#at(scrollTop + 8);
    if (focused === undefined && (current < seen || this.#tops[current]! >= scrollTop + clientHeight)) this.#current = rows[seen]?.id ?? null;
    for (const [id, view] of this.#views) {
      const index = this.#index.get(id);
      if (index !== undefined && wanted.has(index)) continue;
      this.#views.delete(id);
      this.#observer.unobserve(view.element);
      view.remove();
      view.element.remove();
    }
    let before: Element | null = this.#box.firstElementChild;
    for (const index of [...wanted].sort((a, b) => a - b)) {
      const row = rows[index]!;
      let view = this.#views.get(row.id);
      if (!view) {
        view = this.#hooks.make(row);
        this.#views.set(row.id, view);
        this.#observer.observe(view.element);
      }
      view.update(row, index, rows.length);
      view.setCurrent(row.id === this.#current);
      // In the order in which they are read; a node that stands right is not moved, for moving it takes its focus.
      if (view.element === before) before = before.nextElementSibling;
      else this.#box.insertBefore(view.element, before);
    }
  }

  /** Measures what was not measured. Returns whether a height is another one than was laid out. */
  #measure(): boolean {
    let isOther = false;
    let isMeasured = false;
    for (const [id, { element }] of this.#views) {
      if (this.#heights.has(id)) continue;
      const height = element.offsetHeight;
      if (height === 0) continue;
      this.#heights.set(id, height);
      isMeasured = true;
      if (height !== this.#guess) isOther = true;
    }
    if (!isMeasured) return false;
    let sum = 0;
    for (const height of this.#heights.values()) sum += height;
    const mean = sum / this.#heights.size;
    // Else it stays, and with it the scrollbar.
    if (!this.#isGuessKnown || Math.abs(mean - this.#guess) > this.#guess / 4) {
      this.#isGuessKnown = true;
      this.#guess = mean;
      isOther = true;
    }
    return isOther;
  }

  /** The rows that can be seen, where the list is scrolled; at its top, what is new is to be seen. */
  #anchors(): Anchor[] {
    const { scrollTop, clientHeight } = this.#scroller;
    const anchors: Anchor[] = [];
    if (scrollTop <= 0) return anchors;
    for (let index = this.#at(scrollTop); index < this.#rows.length && this.#tops[index]! < scrollTop + clientHeight; index++) {
      anchors.push({ id: this.#rows[index]!.id, delta: scrollTop - this.#tops[index]! });
    }
    return anchors;
  }

  #restore(anchors: readonly Anchor[]): void {
    for (const { id, delta } of anchors) {
      const index = this.#index.get(id);
      if (index === undefined) continue;
      const top = this.#tops[index]! + delta;
      if (Math.abs(top - this.#scroller.scrollTop) >= 1) this.#scroller.scrollTop = top;
      return;
    }
  }

  #focusedId(): string | null {
    const active = (this.#box.getRootNode() as ShadowRoot).activeElement ?? document.activeElement;
    if (!active) return null;
    for (const [id, view] of this.#views) if (view.contains(active)) return id;
    return null;
  }

  #focused({ target }: FocusEvent): void {
    for (const [id, view] of this.#views) {
      const isCurrent = view.contains(target as Node);
      if (isCurrent) this.#current = id;
      view.setCurrent(isCurrent);
    }
  }

  #key(event: KeyboardEvent): void {
    const id = this.#focusedId();
    // In what the page gave, keys are the page's.
    if (id === null || !this.#box.contains(event.target as Node) || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const index = this.#index.get(id)!;
    const last = this.#rows.length - 1;
    const page = Math.max(1, this.#at(this.#tops[index]! + this.#scroller.clientHeight) - index - 1);
    const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: last, PageDown: index + page, PageUp: index - page }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.focus(Math.min(last, Math.max(0, next)));
  }
}
