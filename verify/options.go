package verify

import (
	"crypto/ed25519"
	"fmt"
)

// Options is what the caller trusts and what the caller holds. At least one of PublicKey and VKey is needed.
type Options struct {
	// PublicKey is the log's Ed25519 key, 32 bytes. Alone it doesn't bind the origin: the package may name any log whose
	// key this is, so give Origin or VKey too if a key could ever be shared.
	PublicKey ed25519.PublicKey
	// VKey names the log and its key at once: "origin+keyid+base64".
	VKey string
	// Origin is the name of the log, "host/log/log_…".
	Origin string
	// Successors are the vkeys of the logs that went on where the one above was closed, in their order. Only Delivery takes them:
	// a package may then be of any of these logs, each by its own key.
	Successors []string
	// Witnesses are the vkeys (type 0x04) of witnesses that the caller trusts, and Quorum is how many of them must have
	// cosigned the checkpoint.
	Witnesses []string
	Quorum    int

	// What the caller holds, compared with the leaf's commitments. Pointers, so that empty differs from absent. If the
	// salt that opens a commitment was erased, comparing is impossible, which is an error (ErrErased).
	Payload  *[]byte // body of the webhook
	Response *[]byte // body of the receiver's response
	URL      *string // full URL of the destination, with its query
	Headers  *[]byte // sent headers without credentials, sorted lines "lower-name:value\n"

	// The leaf itself, if the caller has kept its exact bytes or its hash (32 bytes; a sender was told it by Kapsel-Leaf-Hash): the
	// proof must be of this leaf. TLog needs one of both for a leaf whose bytes were erased.
	Leaf, LeafHash *[]byte

	// What the leaf must be about: TypeIDs.
	Attempt, Delivery, Event, Tenant *string
}

// trust returns the key that the caller trusts and the origin that it is for, "" if the caller named none. Errors wrap
// ErrOptions or ErrKey.
func (o Options) trust() (string, ed25519.PublicKey, error) {
	origin, key := o.Origin, o.PublicKey
	if o.VKey != "" {
		name, vkeyKey, err := ParseVKey(o.VKey)
		if err != nil {
			return "", nil, fmt.Errorf("%w: vkey: %w", ErrOptions, err)
		}
		if key != nil && !key.Equal(vkeyKey) || origin != "" && origin != name {
			return "", nil, fmt.Errorf("%w: the vkey contradicts the public key or the origin", ErrOptions)
		}
		origin, key = name, vkeyKey
	}
	if key == nil {
		return "", nil, fmt.Errorf("%w: neither a public key nor a vkey", ErrOptions)
	}
	if err := CheckPublicKey(key); err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	if len(o.Successors) > 0 {
		return "", nil, fmt.Errorf("%w: successors belong to a delivery, not to one package", ErrOptions)
	}
	if o.Quorum < 0 || o.Quorum > len(o.Witnesses) {
		return "", nil, fmt.Errorf("%w: a quorum of %d of %d witnesses", ErrOptions, o.Quorum, len(o.Witnesses))
	}
	if o.LeafHash != nil && len(*o.LeafHash) != HashSize {
		return "", nil, fmt.Errorf("%w: a leaf hash of %d bytes, want %d", ErrOptions, len(*o.LeafHash), HashSize)
	}
	return origin, key, nil
}

// binds reports whether anything is to be compared with what is in the leaf.
func (o Options) binds() bool {
	return o.Payload != nil || o.Response != nil || o.URL != nil || o.Headers != nil ||
		o.Attempt != nil || o.Delivery != nil || o.Event != nil || o.Tenant != nil
}
