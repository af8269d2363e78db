// What the page asks of dev mode. Every request carries the key of the printed address, which stands behind its #.

export interface Facts {
  readonly users: readonly string[];
  readonly topic: string;
  readonly kafka: string;
  readonly version: string;
}

export interface Preview {
  readonly audience: string;
  readonly title: string;
  readonly content: string;
  readonly locale: string;
  readonly dropped: readonly string[];
}

export interface Produced {
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
}

async function post<Answer>(name: string, body: unknown): Promise<Answer> {
  const headers = { "content-type": "application/json", "x-playground-key": location.hash.slice(1) };
  const answer = await fetch(`/playground/${name}`, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the gateway answered ${answer.status}`);
  return (await answer.json()) as Answer;
}

export const facts = (): Promise<Facts> => post("facts", {});
export const token = async (user: string, seconds?: number): Promise<string> => (await post<{ token: string }>("token", { user, seconds })).token;
export const preview = (value: string): Promise<Preview> => post("preview", { value });
export const produce = (key: string, value: string): Promise<Produced> => post("produce", { key, value });
export const drain = (seconds: number): Promise<unknown> => post("drain", { seconds });
