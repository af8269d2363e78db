// The encryption between a client and its gateway: section 6 of docs/protocol.md, on WebCrypto.

import { SignalError } from "./errors.js";

/** 6.3 */
const INFO = new TextEncoder().encode("ignis-ecdh-p256-aes-256-gcm-v1");
const CURVE = { name: "ECDH", namedCurve: "P-256" };

/** Data of `encrypted`. */
export interface Sealed {
  readonly iv: string;
  readonly ct: string;
}

/** The client's key pair, made for one connection. */
export class KeyPair {
  private constructor(
    readonly publicKey: string,
    readonly privateKey: CryptoKey,
  ) {}

  static async generate(): Promise<KeyPair> {
    const subtle = globalThis.crypto?.subtle;
    if (!subtle) {
      throw new SignalError("encryption", "WebCrypto is missing: the page is not served over https or from localhost");
    }
    return KeyPair.of(await subtle.generateKey(CURVE, false, ["deriveBits"]));
  }

  static async of(pair: CryptoKeyPair): Promise<KeyPair> {
    return new KeyPair(encode(new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey))), pair.privateKey);
  }

  /** Derives the session key from what `connected` carries (6.3). */
  async agree(serverPublicKey: string, salt: string): Promise<Cipher> {
    const { subtle } = crypto;
    const server = await subtle.importKey("raw", decode(serverPublicKey), CURVE, false, []);
    const shared = await subtle.deriveBits({ name: "ECDH", public: server }, this.privateKey, 256);
    const secret = await subtle.importKey("raw", shared, "HKDF", false, ["deriveKey"]);
    const hkdf = { name: "HKDF", hash: "SHA-256", salt: decode(salt), info: INFO };
    return new Cipher(
      await subtle.deriveKey(hkdf, secret, { name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]),
    );
  }
}

/** Seals and opens the messages of one connection (6.4). */
export class Cipher {
  constructor(readonly key: CryptoKey) {}

  async seal(envelope: string, iv = crypto.getRandomValues(new Uint8Array(12))): Promise<Sealed> {
    const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, this.key, new TextEncoder().encode(envelope));
    return { iv: encode(iv), ct: encode(new Uint8Array(sealed)) };
  }

  async open({ iv, ct }: Sealed): Promise<string> {
    const opened = await crypto.subtle.decrypt({ name: "AES-GCM", iv: decode(iv) }, this.key, decode(ct));
    return new TextDecoder().decode(opened);
  }
}

function encode(bytes: Uint8Array): string {
  let text = "";
  // In pieces: a call has a limit of arguments.
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

function decode(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
