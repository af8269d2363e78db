import { webcrypto } from "node:crypto";
import { expect, test } from "vitest";
import { KeyPair } from "../../src/seal.js";

const PUBLIC = "BB4YUy/UdUwC8wQdnHXOszuD/9gax85P6ILMscmLxYlupGwxHE4v9A3ZajZT5uRURdMt/khuztdcepDGoYiBwKM=";
const SERVER = "BAeBDql0zqV3PmO4l/N+O+mgnnpf6blxpE0QZawqOpMRY35HpPmUZKD9zkSojsfXA6kYPB0GVS2eLWt2BpSBxXc=";
const SALT = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
const IV = "CQkJCQkJCQkJCQkJ";
const PLAINTEXT = '{"event":"hi","data":null}';
const CT = "v8Cor5oNyZXp++4Nm7vbU4oFSyJubAutTapoBL8YDUvAMa5Xzlf2CeHp";

/** The key pair of the vectors, by its private key: 32 bytes of 7. */
async function vectorKeys(): Promise<KeyPair> {
  const point = Buffer.from(PUBLIC, "base64");
  const url = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64url");
  const jwk = { kty: "EC", crv: "P-256", d: url(new Uint8Array(32).fill(7)), x: url(point.subarray(1, 33)), y: url(point.subarray(33)) };
  const curve = { name: "ECDH", namedCurve: "P-256" };
  const privateKey = await webcrypto.subtle.importKey("jwk", jwk, curve, false, ["deriveBits"]);
  const publicKey = await webcrypto.subtle.importKey("raw", point, curve, true, []);
  return KeyPair.of({ privateKey, publicKey } as CryptoKeyPair);
}

test("the whole way of protocol.md 6.10 gives the values of its table", async () => {
  const keys = await vectorKeys();
  expect(keys.publicKey).toBe(PUBLIC);
  const cipher = await keys.agree(SERVER, SALT);
  expect(await cipher.open({ iv: IV, ct: CT })).toBe(PLAINTEXT);
  expect(await cipher.seal(PLAINTEXT, new Uint8Array(12).fill(9))).toEqual({ iv: IV, ct: CT });
});

test("every connection has a key of its own, uncompressed (protocol.md 6.1)", async () => {
  const [one, other] = [await KeyPair.generate(), await KeyPair.generate()];
  expect(one.publicKey).not.toBe(other.publicKey);
  const bytes = Buffer.from(one.publicKey, "base64");
  expect([bytes.length, bytes[0]]).toEqual([65, 4]);
});

test("a long text is sealed and opened whole, and a changed one does not open", async () => {
  const cipher = await (await vectorKeys()).agree(SERVER, SALT);
  const text = "Đơn hàng ".repeat(20_000);
  const sealed = await cipher.seal(text);
  expect(await cipher.open(sealed)).toBe(text);
  const bytes = Buffer.from(sealed.ct, "base64");
  bytes[10]! ^= 1;
  await expect(cipher.open({ iv: sealed.iv, ct: bytes.toString("base64") })).rejects.toThrow();
});
