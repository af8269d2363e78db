// Pictures of the inbox, for people to look at: `npm run screens` writes them to `docs/`, or to the folder that SIGNAL_SCREENS names.

import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, test } from "vitest";
import { type Site, executable, site } from "../pages/harness.js";

const folder = process.env["SIGNAL_SCREENS"] ?? fileURLToPath(new URL("../../docs", import.meta.url));
const [MINUTE, HOUR, DAY] = [60_000, 3_600_000, 86_400_000];
type Text = readonly [title: string, content: string];

const AGES = [40_000, 7 * MINUTE, 52 * MINUTE, 3 * HOUR, 22 * HOUR, 2 * DAY, 5 * DAY] as const;
const UNREAD = [0, 1, 3];
const TEXTS: Record<string, readonly Text[]> = {
  en: [
    ["Payment received", "Minh Tran paid ₫1,250,000 for order #4821."],
    ["New comment on “Q3 pricing”", "Lan: “Could we move the launch to Tuesday? The partner needs two more days to sign, and I would rather not ship without them. I can update the plan tonight.”"],
    ["Your export is ready", "customers-2026-11.csv, 14.2 MB"],
    ["Refund approved", ""],
    ["Sign-in from a new device", "Chrome on Windows, Da Nang. If this was not you, change your password."],
    ["Weekly summary", "18 orders, ₫42,310,000. Up 12% on last week."],
    ["Invoice #1092 is due on Friday", "Net 30, ₫8,400,000"],
  ],
  vi: [
    ["Đã nhận thanh toán", "Trần Minh đã thanh toán 1.250.000 ₫ cho đơn hàng #4821."],
    ["Bình luận mới trong “Bảng giá quý 3”", "Lan: “Mình dời ngày ra mắt sang thứ Hai được không? Đối tác cần thêm hai ngày để ký và mình không muốn phát hành khi chưa có họ. Tối nay mình cập nhật kế hoạch.”"],
    ["Tệp xuất đã sẵn sàng", "khach-hang-2026-11.csv, 14,2 MB"],
    ["Đã duyệt hoàn tiền", ""],
    ["Đăng nhập từ thiết bị mới", "Chrome trên Windows, Đà Nẵng. Nếu không phải bạn, hãy đổi mật khẩu."],
    ["Tổng kết tuần", "18 đơn hàng, 42.310.000 ₫. Tăng 12% so với tuần trước."],
    ["Hóa đơn #1092 đến hạn thứ Sáu", "Trong 30 ngày, 8.400.000 ₫"],
  ],
  ar: [
    ["تم استلام الدفعة", "دفع أحمد 1,250 ر.س مقابل الطلب رقم 4821."],
    ["تعليق جديد على «أسعار الربع الثالث»", "ليلى: «هل يمكن نقل الإطلاق إلى يوم الثلاثاء؟ يحتاج الشريك إلى يومين إضافيين للتوقيع ولا أريد أن نطلق بدونه.»"],
    ["ملف التصدير جاهز", "customers-2026-11.csv, 14.2 MB"],
    ["تمت الموافقة على الاسترداد", ""],
    ["تسجيل دخول من جهاز جديد", "Chrome على Windows، الرياض. إذا لم تكن أنت فغيّر كلمة المرور."],
    ["الملخص الأسبوعي", "18 طلبا بقيمة 42,310 ر.س. زيادة 12% عن الأسبوع الماضي."],
    ["الفاتورة 1092 مستحقة يوم الجمعة", "8,400 ر.س"],
  ],
};
const ARABIC = { title: "الإشعارات", all: "الكل", unread: "غير مقروءة", markAllRead: "تعليم الكل كمقروء", close: "إغلاق", bell: { other: "الإشعارات، {count} غير مقروءة" } };

let pages: Site;
beforeAll(async () => {
  pages = await site();
});
afterAll(async () => pages?.close());

test.skipIf(!executable).each([
  ["light", "en", "light"],
  ["dark", "en", "dark"],
  ["vietnamese", "vi", "light"],
  ["right-to-left", "ar", "light"],
] as const)("%s", async (name, lang, colorScheme) => {
  const isDark = colorScheme === "dark";
  const [ground, top, line, ink] = isDark ? ["#0e0f12", "#17181c", "#2c2f36", "#eee"] : ["#f6f7f9", "#fff", "#e5e7eb", "#111"];
  const sheet = `body { margin: 0; font: 15px system-ui; background: ${ground}; color: ${ink}; } header { display: flex; justify-content: space-between; align-items: center; padding: 8px 20px; background: ${top}; border-bottom: 1px solid ${line}; }`;
  const items = TEXTS[lang]!.map(([title, content], index) => ({ title, content, locale: lang, age: AGES[index], isRead: !UNREAD.includes(index), data: index % 2 === 0 ? { url: "/orders/1" } : {} }));
  const { page, context } = await pages.open(
    `<header><strong>Acme</strong><signal-inbox open></signal-inbox></header><script type="module" nonce="test">
      import { addMessages } from "@signal/inbox";
      import { fakeClient, notification } from "/fake.js";
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(${JSON.stringify(sheet)});
      document.adoptedStyleSheets = [sheet];
      addMessages("ar", ${JSON.stringify(ARABIC)});
      document.querySelector("signal-inbox").client = fakeClient(${JSON.stringify(items)}.map((item, index) => notification(100 - index, item)));
    </script>`,
    { html: `lang="${lang}" ${lang === "ar" ? 'dir="rtl"' : ""}`, viewport: { width: 520, height: 640 }, deviceScaleFactor: process.env["SIGNAL_SCREENS"] ? 2 : 1, colorScheme },
  );
  await page.getByRole("dialog").waitFor();
  if (name === "light") await page.getByRole("listitem").nth(2).hover();
  await page.waitForTimeout(400);
  await page.screenshot({ path: `${folder}/${name}.png` });
  await context.close();
});
