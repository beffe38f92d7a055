// Package verify checks, offline, what a Kapsel log says about a webhook delivery. It has no part in making proofs and
// trusts nothing but what its caller hands it: a public key, better a vkey (which also names the log).
//
// Start with [Package], which takes a proof package as Kapsel hands it out and checks, in this order: that the package
// is well-formed, that its key is the trusted one, the Ed25519 signatures of its tree head and checkpoint, that the leaf
// is in that tree (RFC 6962), that the leaf is canonical, and that the leaf is about what the caller holds. [Proof],
// [TreeHead], [Inclusion] and [Consistency] are those steps one at a time.
//
// The formats are defined here and nowhere else, and what writes a log imports them from here: [Leaf], [STHMessage],
// [Checkpoint], [Transition], [ProofPackage] and [Commitment].
//
// A valid proof shows what the operator recorded. The operator can omit events, record late, choose every timestamp,
// answer from a host it controls, or keep two trees; the last shows only when heads are compared, through a monitor, a
// witness or an anchor.
package verify
