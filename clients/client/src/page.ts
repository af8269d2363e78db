// What the page around the client goes through: hidden and visible, offline and online, frozen and resumed.
//
// A hidden page's timers come late, up to a minute, and a machine that slept has a socket that only looks open. So nothing here sets a
// timer: the connection is told that the page is back, and looks.

export interface Page {
  /** Whether nobody sees the page. */
  isHidden(): boolean;
  /** Calls `back` when the page is visible, online or resumed again. Returns what ends that. */
  watch(back: () => void): () => void;
}

/** The browser's page; without one, as in Node, a page that is always visible. */
export function browserPage(): Page {
  const scope = globalThis as Partial<Pick<typeof globalThis, "document" | "addEventListener" | "removeEventListener">>;
  const { document } = scope;
  return {
    isHidden: () => document?.visibilityState === "hidden",
    watch(back) {
      const visible = (): void => {
        if (document?.visibilityState === "visible") back();
      };
      document?.addEventListener("visibilitychange", visible);
      document?.addEventListener("resume", back);
      scope.addEventListener?.("online", back);
      scope.addEventListener?.("pageshow", back);
      return () => {
        document?.removeEventListener("visibilitychange", visible);
        document?.removeEventListener("resume", back);
        scope.removeEventListener?.("online", back);
        scope.removeEventListener?.("pageshow", back);
      };
    },
  };
}
