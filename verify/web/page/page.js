// The page around the verifier. All judgement is in Go (../main.go, as WebAssembly in verifier.js); this hands it what was
// chosen and shows what it says. Text from a proof is only ever set as textContent.
"use strict";

const byId = (id) => document.getElementById(id);
const maxProof = 1 << 20; // as verify.MaxPackageSize; the verifier looks again
const maxPayload = 64 << 20;

function show(state, headline, text) {
  const verdict = byId("verdict");
  verdict.className = state;
  verdict.textContent = headline;
  byId("report").textContent = text;
  byId("report").hidden = text === "";
}

// kapselReady is called by the verifier once it runs.
globalThis.kapselReady = () => {
  byId("verify").disabled = false;
  show("", "Nothing verified yet", "");
};

async function contents(input, limit) {
  const file = input.files[0];
  if (!file) return null;
  if (file.size > limit) throw new Error(`${input.labels[0].textContent}: larger than ${limit} bytes`);
  return new Uint8Array(await file.arrayBuffer());
}

const held = (id) => byId(id).value === "" ? null : byId(id).value;

async function verify() {
  show("", "Verifying …", "");
  try {
    const proof = await contents(byId("proof"), maxProof);
    if (proof === null || byId("key").value.trim() === "") {
      show("rejected", "Not verified", "Give the log's key and the proof package.");
      return;
    }
    const result = kapselVerify({
      proof, key: byId("key").value, origin: held("origin"), payload: await contents(byId("payload"), maxPayload),
      url: held("url"), delivery: held("delivery"),
    });
    if (result.verified === true) show("verified", result.delivered ? "Verified: delivered" : "Verified: NOT delivered", result.text);
    else show("rejected", "Rejected", result.text);
  } catch (err) {
    show("rejected", "Not verified", String(err.message || err));
  }
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); verify(); });

// A verdict belongs to what was chosen when it was made: whatever changes takes it away.
byId("form").addEventListener("input", () => { if (!byId("verify").disabled) show("", "Nothing verified yet", ""); });

const drop = byId("drop");
for (const type of ["dragenter", "dragover"]) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) drop.addEventListener(type, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length !== 1) return;
  byId("proof").files = event.dataTransfer.files;
  if (byId("key").value.trim() !== "" && !byId("verify").disabled) verify();
});
// Dropped beside the field, a file would replace the page.
for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => event.preventDefault());

// kapselWASM is what verifier.js holds: gzip of the WebAssembly module, in base64, so that the page also runs from a disk,
// where nothing can be fetched.
async function start() {
  const packed = Uint8Array.from(atob(kapselWASM), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const go = new Go();
  const { instance } = await WebAssembly.instantiate(await new Response(stream).arrayBuffer(), go.importObject);
  go.run(instance);
}

start().catch((err) => show("rejected", "The verifier can't start in this browser", String(err.message || err)));
