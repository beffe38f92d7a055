// Package monitor follows a Kapsel log over HTTP and keeps it honest: every head that the log publishes has to contain the
// one that was seen before it. A log that shows two trees to two parties is found out as soon as one monitor sees both.
//
// [Monitor.Check] is one look at the log. It reads the checkpoint, verifies it under the trusted key, asks for the hashes
// that connect it with the last one, from tiles (c2sp.org/tlog-tiles) or from Kapsel's API, and judges both heads with
// verify.CompareHeads. What convicts the log is kept as evidence ("kapsel.evidence/v1"), which anybody can judge offline.
//
// Nothing that a server answers is trusted: bodies are bounded, redirects aren't followed, and no hash counts that doesn't
// lead to a signed root.
package monitor
