// A socket of the package `ws`, for Node before 22.

import type { WebSocketLike } from "./session.js";

/** What this needs of the package `ws`. */
export interface WsSocket extends WebSocketLike {
  on(event: string, listener: (...args: any[]) => void): unknown;
  terminate(): void;
}

/** Makes `socket` of the options from the class of the package `ws`. It tells the client how long a gateway that is full asked to wait, which browsers keep to themselves. */
export function fromWs(WebSocket: new (url: string, options?: object) => WsSocket, options: object = {}): (url: string) => WebSocketLike {
  return (url) => {
    const socket = new WebSocket(url, { perMessageDeflate: false, ...options });
    socket.on("unexpected-response", (_request: unknown, response: { statusCode?: number; headers: Record<string, string | undefined> }) => {
      const seconds = Number(response.headers["retry-after"] ?? Number.NaN);
      if (seconds >= 0) socket.onerror?.({ retryAfterMs: seconds * 1000 });
      socket.terminate();
    });
    return socket;
  };
}
