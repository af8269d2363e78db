// The only links that data may open: http, https, and relative ones.

import type { Notification } from "@signal/client";

/** Where a value of data leads to, as an absolute address; null for whatever is not a link or of another scheme. */
export function safeLink(value: unknown, base: string): string | null {
  if (typeof value !== "string" || value.trim() === "") return null;
  try {
    const { protocol, href } = new URL(value, base);
    // The browser's own parser decides, so that tabs, line ends and capitals in a scheme hide nothing from it.
    return protocol === "https:" || protocol === "http:" ? href : null;
  } catch {
    return null;
  }
}

/** The link of a notification where the page names none: `url`, `link` or `href` of its data. */
export function linkOf({ data }: Notification): unknown {
  if (typeof data !== "object" || data === null) return null;
  const { url, link, href } = data as Record<"url" | "link" | "href", unknown>;
  return url ?? link ?? href;
}
