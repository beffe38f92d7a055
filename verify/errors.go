package verify

import "errors"

// Each way in which verification can fail has one value here; every error of this package wraps exactly one of them, so
// callers branch with errors.Is and people read the rest of the message.
var (
	// ErrOptions: what the caller handed over can't be used (no key, a vkey that contradicts the key, …). It says
	// nothing about the proof.
	ErrOptions = errors.New("unusable options")
	// ErrKey: a public key has the wrong length, isn't a canonical point of the curve, or has low order.
	ErrKey = errors.New("public key")
	// ErrPackageFormat: the proof package isn't what "kapsel.proof/v1" allows.
	ErrPackageFormat = errors.New("package format")
	// ErrTLogProofFormat: the proof isn't what "c2sp.org/tlog-proof@v1" allows, or its extra data aren't Kapsel's.
	ErrTLogProofFormat = errors.New("tlog-proof format")
	// ErrNoLeaf: the proof doesn't hold the leaf, whose bytes were erased, and the caller has handed over too little of it.
	ErrNoLeaf = errors.New("the leaf isn't in the proof")
	// ErrLeafMismatch: the proof is of another leaf than the one whose bytes or hash the caller holds.
	ErrLeafMismatch = errors.New("leaf differs from the one held")
	// ErrUntrustedKey: the head is signed under a key that the trusted key doesn't vouch for.
	ErrUntrustedKey = errors.New("untrusted key")
	// ErrKeyHistory: a key transition that is needed is malformed, unsigned or inconsistent with the head.
	ErrKeyHistory = errors.New("key history")
	// ErrOrigin: package, checkpoint, leaf and trusted origin don't all name the same log.
	ErrOrigin = errors.New("origin")
	// ErrHeadFormat: a tree head's size, time, root or signature is out of range or has the wrong length.
	ErrHeadFormat = errors.New("tree head format")
	// ErrSignature: an Ed25519 signature of a tree head or checkpoint doesn't verify.
	ErrSignature = errors.New("signature")
	// ErrNoteFormat: a signed note is malformed.
	ErrNoteFormat = errors.New("note format")
	// ErrCheckpointFormat: the text of a checkpoint is malformed.
	ErrCheckpointFormat = errors.New("checkpoint format")
	// ErrHeadMismatch: the signed tree head and the checkpoint of one package differ.
	ErrHeadMismatch = errors.New("tree head and checkpoint differ")
	// ErrInclusion: the leaf isn't proved to be in the tree.
	ErrInclusion = errors.New("inclusion proof")
	// ErrConsistency: one tree isn't proved to be a prefix of the other.
	ErrConsistency = errors.New("consistency proof")
	// ErrLeafFormat: the leaf isn't canonical JSON with exactly the members and grammars of leaf v1.
	ErrLeafFormat = errors.New("leaf format")
	// ErrUnknownKind: the leaf is well-formed, but of a kind that this version doesn't know.
	ErrUnknownKind = errors.New("log entry of unknown kind")
	// ErrPayloadMismatch: the leaf commits to another payload.
	ErrPayloadMismatch = errors.New("payload differs from the recorded one")
	// ErrResponseMismatch: the leaf commits to another response body, or to none.
	ErrResponseMismatch = errors.New("response differs from the recorded one")
	// ErrURLMismatch: the leaf commits to another URL.
	ErrURLMismatch = errors.New("URL differs from the recorded one")
	// ErrHeadersMismatch: the leaf commits to other request headers.
	ErrHeadersMismatch = errors.New("headers differ from the recorded ones")
	// ErrErased: the caller asked to compare content whose salt the package no longer holds. Without the salt nothing
	// can be compared, and a salt that somebody removed must not turn a mismatch into a pass.
	ErrErased = errors.New("content can't be compared, its salt was erased")
	// ErrAttemptMismatch: the leaf is about another attempt.
	ErrAttemptMismatch = errors.New("attempt differs from the recorded one")
	// ErrDeliveryMismatch: the leaf is about another delivery.
	ErrDeliveryMismatch = errors.New("delivery differs from the recorded one")
	// ErrEventMismatch: the leaf is about another event.
	ErrEventMismatch = errors.New("event differs from the recorded one")
	// ErrTenantMismatch: the leaf belongs to another tenant.
	ErrTenantMismatch = errors.New("tenant differs from the recorded one")
	// ErrQuorum: fewer trusted witnesses than demanded cosigned the checkpoint.
	ErrQuorum = errors.New("witness quorum")
	// ErrChain: leaves of one delivery contradict each other, so they can't all be what was recorded of it.
	ErrChain = errors.New("chain of attempts")
	// ErrEvidenceFormat: the evidence isn't what "kapsel.evidence/v1" allows.
	ErrEvidenceFormat = errors.New("evidence format")
	// ErrNoEvidence: the evidence is well-formed, but its two heads don't show what it says they show.
	ErrNoEvidence = errors.New("no evidence")
)
