// Package testlog is a log for tests: a list of leaves in memory, its own key, and a Merkle tree that is written down
// from the definitions of RFC 6962, section 2.1, with nothing of what it helps to test except the formats.
package testlog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/kapsel-io/kapsel/verify"
)

// Start is the time of the first leaf, Unix ms.
const Start = 1705314645123 // 2024-01-15T10:30:45.123Z

// What every leaf of Append commits to.
var (
	Payload  = []byte(`{"action":"opened"}`)
	Response = []byte(`ok`)
	URL      = "https://example.com/webhook?token=secret"
	Headers  = []byte("content-type:application/json\nx-github-event:issues\n")
)

// Log is an append-only log that signs any of its sizes.
type Log struct {
	Origin string
	Key    ed25519.PrivateKey
	Leaves [][]byte
}

// New makes an empty log whose key follows from seed.
func New(seed byte) *Log {
	return &Log{Origin: "kapsel.example/log/" + ID("log", int(seed)), Key: Key(seed)}
}

// Key makes a key that follows from seed.
func Key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

// ID makes a TypeID that follows from n.
func ID(prefix string, n int) string {
	return fmt.Sprintf("%s_%026d", prefix, n)
}

// Public returns the log's public key.
func (l *Log) Public() ed25519.PublicKey { return l.Key.Public().(ed25519.PublicKey) }

// VKey returns the log's name and key.
func (l *Log) VKey() string { return verify.VKey(l.Origin, l.Public()) }

func salt(label string, n int) []byte {
	return verify.DeriveSalt(fmt.Appendf(nil, "secret %d", n), label)
}

// Leaf makes the leaf of a delivered attempt; n tells it from others.
func (l *Log) Leaf(n int) *verify.Leaf {
	commit := func(label string, x []byte) string {
		return hex.EncodeToString(verify.Commitment(label, salt(label, n), x))
	}
	nonce := sha256.Sum256(fmt.Appendf(nil, "nonce %d", n))
	return &verify.Leaf{
		AttemptID: ID("da", n), AttemptNumber: 1, AttemptedAt: verify.FormatTime(time.UnixMilli(Start + int64(n))),
		DeliveryID: ID("dlv", n), DestinationID: ID("dst", 1), DurationMS: 41,
		EndpointID: ID("ep", 1), EndpointURL: "https://example.com/webhook", EventID: ID("evt", n),
		HeadersHash: commit(verify.LabelHeaders, Headers), Kind: verify.KindAttempt, Nonce: hex.EncodeToString(nonce[:16]),
		Origin: l.Origin, Outcome: verify.OutcomeDelivered,
		PayloadHash: commit(verify.LabelPayload, Payload), PayloadSize: int64(len(Payload)),
		ResponseHash: commit(verify.LabelResponse, Response), ResponseSize: int64(len(Response)), ResponseStatus: 200,
		Seq: 1, TenantID: ID("ten", 1), URLHash: commit(verify.LabelURL, []byte(URL)), V: 1,
	}
}

// Append adds a leaf, changed by edit if that isn't nil, and returns its index.
func (l *Log) Append(edit func(*verify.Leaf)) int {
	n := len(l.Leaves)
	leaf := l.Leaf(n)
	if edit != nil {
		edit(leaf)
	}
	b, err := leaf.Bytes()
	if err != nil {
		panic(err)
	}
	l.Leaves = append(l.Leaves, b)
	return n
}

// Fill appends leaves until there are n.
func (l *Log) Fill(n int) *Log {
	for len(l.Leaves) < n {
		l.Append(nil)
	}
	return l
}

// Head signs the tree of the first size leaves.
func (l *Log) Head(size int) verify.SignedTreeHead {
	sth := verify.SignedTreeHead{TreeSize: uint64(size), Timestamp: Start + 60_000, RootHash: Root(l.Leaves[:size])}
	sth.Signature = ed25519.Sign(l.Key, verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash))
	return sth
}

// Checkpoint writes the checkpoint of a head.
func (l *Log) Checkpoint(sth verify.SignedTreeHead) []byte {
	text := verify.CheckpointText(l.Origin, sth.TreeSize, sth.RootHash)
	return verify.FormatCheckpoint(l.Origin, l.Public(), sth, ed25519.Sign(l.Key, []byte(text)))
}

// Package makes the proof package of a leaf in the tree of the first size leaves.
func (l *Log) Package(index, size int) *verify.ProofPackage {
	sth := l.Head(size)
	return &verify.ProofPackage{
		Format: verify.Format, Origin: l.Origin, VKey: l.VKey(), LogKeyID: verify.LogKeyID(l.Public()),
		Leaf: l.Leaves[index],
		Salts: &verify.Salts{
			Payload: salt(verify.LabelPayload, index), Response: salt(verify.LabelResponse, index),
			URL: salt(verify.LabelURL, index), Headers: salt(verify.LabelHeaders, index),
		},
		LeafIndex: uint64(index), InclusionProof: Path(index, l.Leaves[:size]),
		STH: verify.NewPackageHead(sth), Checkpoint: string(l.Checkpoint(sth)),
	}
}

// TLogProof makes the proof of a leaf in the tree of the first size leaves as a text.
func (l *Log) TLogProof(index, size int) *verify.TLogProof {
	p := l.Package(index, size)
	return &verify.TLogProof{
		Leaf: p.Leaf, Salts: p.Salts, LeafIndex: p.LeafIndex, InclusionProof: p.InclusionProof, Checkpoint: []byte(p.Checkpoint),
	}
}

// Transition changes the log's key: it writes the transition at the present size, appends it as a leaf and goes on with
// the new key.
func (l *Log) Transition(newKey ed25519.PrivateKey, reason string) string {
	t := verify.Transition{
		Origin: l.Origin, TreeSize: uint64(len(l.Leaves)), RootHash: Root(l.Leaves),
		OldKey: l.Public(), NewKey: newKey.Public().(ed25519.PublicKey), Reason: reason,
	}
	signers := []ed25519.PrivateKey{newKey}
	if reason == verify.ReasonRotation {
		signers = []ed25519.PrivateKey{l.Key, newKey}
	}
	note := string(SignNote(t.Text(), l.Origin, signers...))
	l.Leaves = append(l.Leaves, []byte(note))
	l.Key = newKey
	return note
}

// SignNote signs a text with Ed25519 lines of one name.
func SignNote(text, name string, keys ...ed25519.PrivateKey) []byte {
	n := verify.Note{Text: text}
	for _, k := range keys {
		id := verify.CheckpointKeyID(name, k.Public().(ed25519.PublicKey))
		n.Signatures = append(n.Signatures, verify.NoteSignature{Name: name, KeyID: id, Signature: ed25519.Sign(k, []byte(text))})
	}
	return n.Bytes()
}

// hash is SHA-256 over parts, each either the tag of RFC 6962 or a hash.
func hash(parts ...[]byte) []byte {
	sum := sha256.Sum256(bytes.Join(parts, nil))
	return sum[:]
}

// split is the largest power of two smaller than n.
func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

// Root is MTH(D[n]) of RFC 6962, section 2.1.
func Root(leaves [][]byte) []byte {
	switch n := len(leaves); n {
	case 0:
		return hash()
	case 1:
		return hash([]byte{0}, leaves[0])
	default:
		k := split(n)
		return hash([]byte{1}, Root(leaves[:k]), Root(leaves[k:]))
	}
}

// Path is PATH(m, D[n]) of RFC 6962, section 2.1.1.
func Path(m int, leaves [][]byte) [][]byte {
	n := len(leaves)
	if n == 1 {
		return nil
	}
	k := split(n)
	if m < k {
		return append(Path(m, leaves[:k]), Root(leaves[k:]))
	}
	return append(Path(m-k, leaves[k:]), Root(leaves[:k]))
}

// Paths is Path for every leaf, with each subtree's root computed once.
func Paths(leaves [][]byte) (root []byte, paths [][][]byte) {
	n := len(leaves)
	if n == 1 {
		return Root(leaves), [][][]byte{nil}
	}
	k := split(n)
	left, leftPaths := Paths(leaves[:k])
	right, rightPaths := Paths(leaves[k:])
	for i := range leftPaths {
		leftPaths[i] = append(leftPaths[i], right)
	}
	for i := range rightPaths {
		rightPaths[i] = append(rightPaths[i], left)
	}
	return hash([]byte{1}, left, right), append(leftPaths, rightPaths...)
}

// ConsistencyPath is PROOF(m, D[n]) of RFC 6962, section 2.1.2.
func ConsistencyPath(m int, leaves [][]byte) [][]byte {
	if m == 0 {
		return nil
	}
	return subproof(m, leaves, true)
}

func subproof(m int, leaves [][]byte, whole bool) [][]byte {
	n := len(leaves)
	if m == n {
		if whole {
			return nil
		}
		return [][]byte{Root(leaves)}
	}
	k := split(n)
	if m <= k {
		return append(subproof(m, leaves[:k], whole), Root(leaves[k:]))
	}
	return append(subproof(m-k, leaves[k:], false), Root(leaves[:k]))
}

// EvidencePath is SUBPROOF(m, D[n], false) of RFC 6962, section 2.1.2, which evidence holds: unlike PROOF it also has the
// root of the first m leaves if m is a power of two.
func EvidencePath(m int, leaves [][]byte) [][]byte {
	if m == 0 {
		return nil
	}
	return subproof(m, leaves, false)
}

// Numbered makes n small leaves that aren't leaf v1, for tests of trees.
func Numbered(n int) [][]byte {
	leaves := make([][]byte, n)
	for i := range leaves {
		leaves[i] = fmt.Appendf(nil, "leaf %d%s", i, strings.Repeat(".", i%3))
	}
	return leaves
}
