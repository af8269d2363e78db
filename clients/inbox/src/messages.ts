// Every text that people read, by language. Vietnamese and English are built in; a page adds any other one, or changes some of them.

/** A text for each plural category of the language, as `Intl.PluralRules` names them. */
export type Plural = { readonly other: string } & Partial<Readonly<Record<Intl.LDMLPluralRule, string>>>;

/** `{count}` stands for a number, written as the language writes it. */
export interface Messages {
  readonly title: string;
  /** The bell's name for screen readers while something is unread. */
  readonly bell: Plural;
  readonly all: string;
  readonly unread: string;
  readonly markAllRead: string;
  readonly markRead: string;
  readonly remove: string;
  readonly close: string;
  readonly loading: string;
  readonly emptyTitle: string;
  readonly emptyText: string;
  readonly noUnreadTitle: string;
  readonly noUnreadText: string;
  readonly errorTitle: string;
  readonly errorText: string;
  readonly unavailableTitle: string;
  readonly unavailableText: string;
  readonly offline: string;
  readonly closed: string;
  readonly connect: string;
  readonly changeFailed: string;
  readonly moreFailed: string;
  readonly retry: string;
  /** On the button that leads to those that came while the list was scrolled. */
  readonly more: Plural;
}

const en: Messages = {
  title: "Notifications",
  bell: { one: "Notifications, {count} unread", other: "Notifications, {count} unread" },
  all: "All",
  unread: "Unread",
  markAllRead: "Mark all as read",
  markRead: "Mark as read",
  remove: "Delete",
  close: "Close",
  loading: "Loading",
  emptyTitle: "No notifications yet",
  emptyText: "When something needs you, it shows up here.",
  noUnreadTitle: "You are all caught up",
  noUnreadText: "Everything here has been read.",
  errorTitle: "Notifications could not be loaded",
  errorText: "Trying again in a moment.",
  unavailableTitle: "No inbox",
  unavailableText: "This account has no notifications.",
  offline: "Offline. Connecting again.",
  closed: "Not connected.",
  connect: "Connect",
  changeFailed: "That could not be saved and was taken back.",
  moreFailed: "Older ones could not be loaded.",
  retry: "Try again",
  more: { one: "{count} new", other: "{count} new" },
};

const vi: Messages = {
  title: "Thông báo",
  bell: { other: "Thông báo, {count} chưa đọc" },
  all: "Tất cả",
  unread: "Chưa đọc",
  markAllRead: "Đánh dấu tất cả là đã đọc",
  markRead: "Đánh dấu là đã đọc",
  remove: "Xóa",
  close: "Đóng",
  loading: "Đang tải",
  emptyTitle: "Chưa có thông báo",
  emptyText: "Khi có việc cần bạn, thông báo sẽ hiện ở đây.",
  noUnreadTitle: "Bạn đã xem hết",
  noUnreadText: "Mọi thông báo ở đây đều đã được đọc.",
  errorTitle: "Không tải được thông báo",
  errorText: "Sẽ thử lại ngay.",
  unavailableTitle: "Không có hộp thư",
  unavailableText: "Tài khoản này không có thông báo.",
  offline: "Mất kết nối. Đang kết nối lại.",
  closed: "Chưa kết nối.",
  connect: "Kết nối",
  changeFailed: "Không lưu được nên đã hoàn tác.",
  moreFailed: "Không tải được thông báo cũ hơn.",
  retry: "Thử lại",
  more: { other: "{count} thông báo mới" },
};

const tables = new Map<string, Messages>([["en", en], ["vi", vi]]);

/** Adds a language, such as `fr` or `pt-BR`, for every inbox of the page. What the table leaves out is English. */
export function addMessages(locale: string, messages: Partial<Messages>): void {
  tables.set(locale.toLowerCase(), { ...en, ...messages });
  for (const added of [...watchers]) added();
}

const watchers = new Set<() => void>();

/** Calls `added` when a language is added. Returns what ends that. */
export function watchMessages(added: () => void): () => void {
  watchers.add(added);
  return () => void watchers.delete(added);
}

/** The texts of one language, with its numbers and plurals. */
export class Texts {
  readonly locale: string;
  readonly #messages: Messages;
  readonly #numbers: Intl.NumberFormat;
  readonly #plurals: Intl.PluralRules;

  constructor(locale: string, changes: Partial<Messages> = {}) {
    this.locale = known(locale);
    this.#messages = { ...tableOf(this.locale), ...changes };
    this.#numbers = new Intl.NumberFormat(this.locale);
    this.#plurals = new Intl.PluralRules(this.locale);
  }

  get(key: Exclude<keyof Messages, "bell" | "more">): string {
    return this.#messages[key];
  }

  /** `shown` stands for the number, such as `99+`. */
  count(key: "bell" | "more", count: number, shown = this.number(count)): string {
    const forms = this.#messages[key];
    return (forms[this.#plurals.select(count)] ?? forms.other).replace("{count}", shown);
  }

  number(count: number): string {
    return this.#numbers.format(count);
  }
}

/** `pt-BR`, then `pt`, then English. */
function tableOf(locale: string): Messages {
  for (let tag = locale.toLowerCase(); tag !== ""; tag = tag.slice(0, Math.max(0, tag.lastIndexOf("-")))) {
    const table = tables.get(tag);
    if (table) return table;
  }
  return en;
}

/** A tag that `Intl` takes. */
function known(locale: string): string {
  try {
    return Intl.getCanonicalLocales(locale)[0] ?? "en";
  } catch {
    return "en";
  }
}
