// Package attestation is the transparency log that proves what was delivered: an append-only Merkle tree in the sense of
// RFC 6962 (section 2.1), whose head is signed with Ed25519.
//
// The way of a leaf through this package:
//
//	Commit, EndpointURL     what a verify.Leaf says of an attempt: salted commitments instead of contents
//	Tree.Append             a batch of leaf hashes becomes a new root and the tiles that hold it
//	HighWater.Advance       the head is remembered outside the database before it is signed
//	Signer                  signs the head, twice: as a signed tree head and as a C2SP checkpoint
//	ProveInclusion          the hashes that lead from a leaf to a signed root, read from tiles
//	Evidence.Package        all of that in one file that github.com/kapsel-io/kapsel/verify checks offline
//
// Everything here is pure but for two files, the signer's seed and the high-water record. The package knows neither SQL
// nor HTTP: callers load what EdgeTiles and TileReader ask for, and store what Append returns. What is needed to check
// a proof (hashes, message formats, the leaf's members) is defined in verify and only used here.
package attestation
