package attestation

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// Acceptance is what is to be said in the log of an event that was accepted. Nothing in it depends on what is stored, so its
// leaf is made before the commit that makes it true.
type Acceptance struct {
	Origin                  string // of the log
	Tenant, Endpoint, Event uuid.UUID
	At                      time.Time
	PayloadHash             []byte
	PayloadSize             int
	Nonce                   string // hex; "": Leaf makes one each time
}

// Leaf returns the leaf of kind "accepted", and its hash. Made again from an acceptance with a nonce, it is the same leaf. It belongs to no delivery, so what
// deliveries and attempts have is empty in it. Errors wrap verify's.
func (a *Acceptance) Leaf() (leaf, hash []byte, err error) {
	nonce := a.Nonce
	if nonce == "" {
		nonce = NewNonce()
	}
	l := verify.Leaf{
		AttemptedAt: verify.FormatTime(a.At),
		EndpointID:  id.Endpoint.Format(a.Endpoint),
		EventID:     id.Event.Format(a.Event),
		Kind:        verify.KindAccepted,
		Nonce:       nonce,
		Origin:      a.Origin,
		PayloadHash: hex.EncodeToString(a.PayloadHash),
		PayloadSize: int64(a.PayloadSize),
		Seq:         1,
		TenantID:    id.Tenant.Format(a.Tenant),
		V:           1,
	}
	if leaf, err = l.Bytes(); err != nil {
		return nil, nil, fmt.Errorf("make leaf of event %s: %w", l.EventID, err)
	}
	return leaf, verify.LeafHash(leaf), nil
}

// Parts returns what the leaf says that no other column of the event does: version, nonce, and time in Unix milliseconds. It is kept,
// so that a lost leaf can be made again. The error wraps ErrLeafParts.
func (a *Acceptance) Parts() ([]byte, error) {
	nonce, err := hex.DecodeString(a.Nonce)
	if err != nil || len(nonce) != nonceSize {
		return nil, fmt.Errorf("nonce %q: %w", a.Nonce, ErrLeafParts)
	}
	return binary.BigEndian.AppendUint64(append([]byte{leafPartsVersion}, nonce...), uint64(a.At.UnixMilli())), nil
}

// AddParts fills in what Parts returned. The error wraps ErrLeafParts.
func (a *Acceptance) AddParts(parts []byte) error {
	if len(parts) != 1+nonceSize+8 || parts[0] != leafPartsVersion {
		return fmt.Errorf("%d bytes: %w", len(parts), ErrLeafParts)
	}
	a.Nonce = hex.EncodeToString(parts[1 : 1+nonceSize])
	a.At = time.UnixMilli(int64(binary.BigEndian.Uint64(parts[1+nonceSize:])))
	return nil
}
