// What needs no page: links, texts, times, and where the panel stands.

import { describe, expect, test } from "vitest";
import { linkOf, safeLink } from "../../src/link.js";
import { Texts, addMessages } from "../../src/messages.js";
import { position } from "../../src/position.js";
import { Times } from "../../src/time.js";

const BASE = "https://shop.example/app/";

describe("links", () => {
  test.each([
    ["https://a.example/x", "https://a.example/x"],
    ["http://a.example", "http://a.example/"],
    ["/orders/1", "https://shop.example/orders/1"],
    ["orders?id=1#top", "https://shop.example/app/orders?id=1#top"],
    ["//other.example/x", "https://other.example/x"],
  ])("%j leads to %s", (value, href) => expect(safeLink(value, BASE)).toBe(href));

  test.each(["javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "\u0001javascript:alert(1)", "data:text/html,<b>", "vbscript:x", "file:///etc/passwd", "blob:https://a/1", "mailto:a@b.c", "", "  ", "http://", 5, null, undefined, {}, ["/x"]])("%j leads nowhere", (value) => {
    expect(safeLink(value, BASE)).toBeNull();
  });

  test("of the data, `url`, `link` and `href` are looked at, whatever the data is", () => {
    const of = (data: unknown): unknown => linkOf({ data } as never);
    expect([of({ url: "/a", link: "/b" }), of({ link: "/b" }), of({ href: "/c" }), of({}), of(null), of("/x"), of([1])]).toEqual(["/a", "/b", "/c", undefined, null, null, undefined]);
  });
});

describe("texts", () => {
  test("are in the language, then in its parent, then in English", () => {
    expect(new Texts("vi").get("title")).toBe("Thông báo");
    expect(new Texts("vi-VN").get("all")).toBe("Tất cả");
    expect(new Texts("xx-YY").get("all")).toBe("All");
    expect(new Texts("not a tag").get("all")).toBe("All");
    expect(new Texts("en", { all: "Everything" }).get("all")).toBe("Everything");
  });

  test("count as the language does", () => {
    addMessages("pl", { bell: { one: "jedna {count}", few: "kilka {count}", other: "wiele {count}" } });
    const texts = new Texts("pl-PL");
    expect([1, 3, 5].map((count) => texts.count("bell", count))).toEqual(["jedna 1", "kilka 3", "wiele 5"]);
    expect(texts.get("all")).toBe("All");
    expect(new Texts("vi").count("bell", 12_345)).toBe("Thông báo, 12.345 chưa đọc");
  });
});

describe("times", () => {
  const now = new Date(2026, 10, 29, 12).getTime();
  const shown = (locale: string): string[] => [-60, 0, 44, 46, 59 * 60, 3_600, 86_399, 86_400, 7 * 86_400, 400 * 86_400].map((seconds) => new Times(locale).relative(now - seconds * 1_000, now));

  test("are short, and dates after a week", () => {
    expect(shown("en")).toEqual(["now", "now", "now", "1 min. ago", "59 min. ago", "1 hr. ago", "23 hr. ago", "yesterday", "Nov 22", "Oct 25, 2025"]);
  });

  test("are in the language", () => {
    expect(shown("vi")).toEqual(["bây giờ", "bây giờ", "bây giờ", "1 phút trước", "59 phút trước", "1 giờ trước", "23 giờ trước", "hôm qua", "22 thg 11", "25 thg 10, 2025"]);
  });
});

describe("the panel", () => {
  const view = { width: 1_000, height: 800 };
  const panel = { width: 400, height: 500 };
  const bell = (left: number, top: number) => ({ left, top, right: left + 40, bottom: top + 40 });

  test("stands below the bell, at its end", () => {
    expect(position(bell(900, 10), panel, view, "bottom-end", false)).toMatchObject({ left: 540, top: 58 });
    expect(position(bell(500, 10), panel, view, "bottom-start", false)).toMatchObject({ left: 500, top: 58 });
  });

  test("is mirrored from right to left", () => {
    expect(position(bell(100, 10), panel, view, "bottom-end", true)).toMatchObject({ left: 100 });
    expect(position(bell(900, 10), panel, view, "bottom-start", true)).toMatchObject({ left: 540 });
  });

  test("goes where there is room, and is never outside", () => {
    expect(position(bell(900, 740), panel, view, "bottom-end", false)).toMatchObject({ left: 540, top: 232 });
    expect(position(bell(900, 10), panel, view, "top-end", false)).toMatchObject({ top: 58 });
    expect(position(bell(10, 10), panel, view, "bottom-end", false)).toMatchObject({ left: 8 });
    expect(position(bell(900, 380), { width: 400, height: 700 }, view, "bottom-end", false)).toEqual({ left: 540, top: 428, room: 364 });
  });
});
