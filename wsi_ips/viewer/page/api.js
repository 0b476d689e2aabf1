// All requests of the page to its server.

const path = (slide) => `/slides/${encodeURIComponent(slide)}`;

async function answer(response) {
  if (response.ok) return response;
  let reason = `the server says ${response.status}`;
  try {
    reason = (await response.json()).error ?? reason;
  } catch {
    // not JSON: only the status is known
  }
  throw new Error(reason);
}

const json = async (url) => (await answer(await fetch(url))).json();
const bytes = async (url) => (await answer(await fetch(url))).arrayBuffer();

export const worklist = () => json("/api/worklist");
export const slide = (id) => json(`/api${path(id)}`);
export const tiles = (id) => bytes(`/api${path(id)}/tiles`);
export const layer = async (id, kind) => new Uint8Array(await bytes(`/api${path(id)}/layers/${kind}`));
export const tileUrl = (id, version, level, x, y) => `${path(id)}/dz/${level}/${x}_${y}.jpg?v=${version}`;
export const patchUrl = (id, version, tile) => `${path(id)}/patches/${tile}.jpg?v=${version}`;
export const downloadUrl = (id, name) => `${id === null ? "" : path(id)}/downloads/${encodeURIComponent(name)}`;

export async function review(id, given) {
  const headers = { "content-type": "application/json", "x-wsi-ips": "review" };
  const options = { method: "PUT", headers, body: JSON.stringify(given) };
  return (await answer(await fetch(`/api${path(id)}/review`, options))).json();
}
