// Requests to the gateway's REST interface, with the token of the connection. Every failure is a `SignalError`.

import { type Clock, Timer } from "./clock.js";
import { SignalError } from "./errors.js";
import type { Tokens } from "./tokens.js";
import type { Notification, NotificationPage, NotificationsRead, Problem } from "./wire.js";

const TIMEOUT_MS = 15_000;

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** Which notifications become read. */
export type ReadSelector = { readonly ids: readonly string[] } | { readonly upTo: number } | { readonly all: true };

export interface PageQuery {
  readonly cursor?: string | null;
  readonly limit?: number;
}

export class Rest {
  constructor(
    readonly base: string,
    readonly tokens: Tokens,
    readonly fetch: Fetch,
    readonly clock: Clock,
    readonly parse: (text: string) => unknown,
  ) {}

  page({ cursor, limit = 50 }: PageQuery = {}): Promise<NotificationPage> {
    return this.#call("GET", `/notifications?limit=${limit}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  }

  async one(id: string): Promise<Notification | null> {
    try {
      return await this.#call<Notification>("GET", `/notifications/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error instanceof SignalError && error.status === 404) return null;
      throw error;
    }
  }

  read(selector: ReadSelector): Promise<NotificationsRead> {
    return this.#call("POST", "/notifications/read", selector);
  }

  /** Whether there was one to delete. */
  async remove(id: string): Promise<boolean> {
    try {
      await this.#call<undefined>("DELETE", `/notifications/${encodeURIComponent(id)}`);
      return true;
    } catch (error) {
      if (error instanceof SignalError && error.status === 404) return false;
      throw error;
    }
  }

  async #call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const token = await this.tokens.current();
    try {
      return await this.#request<T>(token, method, path, body);
    } catch (error) {
      if (!(error instanceof SignalError) || error.status !== 401) throw error;
      this.tokens.refuse(token);
      return this.#request<T>(await this.tokens.next(), method, path, body);
    }
  }

  async #request<T>(token: string, method: string, path: string, body?: unknown): Promise<T> {
    const abort = new AbortController();
    const timer = new Timer(this.clock);
    timer.set(TIMEOUT_MS, () => abort.abort());
    try {
      const headers: Record<string, string> = { authorization: `Bearer ${token}` };
      if (body !== undefined) headers["content-type"] = "application/json";
      const answer = await this.fetch(this.base + path, {
        method,
        headers,
        signal: abort.signal,
        cache: "no-store",
        // Who reads a notification often leaves the page with the same click: the browser sends it all the same.
        keepalive: method !== "GET",
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
      const text = await answer.text();
      if (!answer.ok) throw refused(answer, text);
      return (text ? this.parse(text) : undefined) as T;
    } catch (error) {
      if (error instanceof SignalError) throw error;
      const code = abort.signal.aborted ? "timeout" : "connection_lost";
      throw new SignalError(code, `${method} ${path.split("?")[0]}: ${String(error)}`, { cause: error });
    } finally {
      timer.clear();
    }
  }
}

/** Whether the same request may succeed later. */
export function isTransient({ code, status = 0 }: SignalError): boolean {
  return code === "timeout" || code === "connection_lost" || code === "token_unavailable" || status >= 500 || status === 429 || status === 408;
}

function refused(answer: Response, text: string): SignalError {
  let problem: Partial<Problem> = {};
  try {
    problem = JSON.parse(text) as Partial<Problem>;
  } catch {
    // A proxy's page.
  }
  const seconds = Number(answer.headers.get("retry-after") ?? Number.NaN);
  return new SignalError("rest", problem.detail ?? problem.title ?? `HTTP ${answer.status}`, {
    status: answer.status,
    ...(problem.code !== undefined && { problem: problem.code }),
    ...(problem.detail !== undefined && { serverText: problem.detail }),
    ...(seconds >= 0 && { retryAfterMs: seconds * 1000 }),
  });
}
