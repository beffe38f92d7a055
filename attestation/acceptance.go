package attestation

import (
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
}

// Leaf returns the leaf of kind "accepted", with a nonce of its own, and its hash. It belongs to no delivery, so what
// deliveries and attempts have is empty in it. Errors wrap verify's.
func (a *Acceptance) Leaf() (leaf, hash []byte, err error) {
	l := verify.Leaf{
		AttemptedAt: verify.FormatTime(a.At),
		EndpointID:  id.Endpoint.Format(a.Endpoint),
		EventID:     id.Event.Format(a.Event),
		Kind:        verify.KindAccepted,
		Nonce:       NewNonce(),
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
