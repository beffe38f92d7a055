package audit

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// transitionRow is what key_transitions has to hold of a change of the key that is a leaf: the api shows changes from there,
// because leaves belong to tenants. It comes into effect when its new key does.
func transitionRow(t *verify.Transition, note []byte, keys []postgres.LogKey) postgres.KeyTransition {
	row := postgres.KeyTransition{TreeSize: int64(t.TreeSize), OldKeyID: verify.LogKeyID(t.OldKey), NewKeyID: verify.LogKeyID(t.NewKey),
		Reason: t.Reason, Note: note}
	for _, key := range keys {
		if bytes.Equal(key.KeyID, row.NewKeyID) {
			row.ChangedAt = key.NotBefore
		}
	}
	return row
}

// checkTransitions compares key_transitions with the transitions among the leaves, up to the newest published head.
func (c *checker) checkTransitions(ctx context.Context) error {
	rows, err := postgres.LogKeyTransitions(ctx, c.DB, c.Log.ID)
	if err != nil {
		return err
	}
	stored := map[uint64]postgres.KeyTransition{}
	for _, row := range rows {
		stored[uint64(row.TreeSize)] = row
	}
	for _, n := range c.keys.ends {
		row, ok := stored[n]
		delete(stored, n)
		if err := c.checkTransition(ctx, n, row, ok); err != nil {
			return err
		}
	}
	for _, row := range rows {
		n := uint64(row.TreeSize)
		if _, left := stored[n]; !left || n >= c.head.TreeSize {
			continue
		}
		if err := c.checkNoTransition(ctx, n, row); err != nil {
			return err
		}
	}
	return nil
}

// checkTransition compares the row of size n with leaf n, a transition that holds there.
func (c *checker) checkTransition(ctx context.Context, n uint64, row postgres.KeyTransition, ok bool) error {
	if !ok {
		c.found(leafFault(KeyChange, n, "key_transitions has no row, so the api doesn't show this change of the key"))
		return nil
	}
	leaf, err := c.leafAt(ctx, n)
	if err != nil || leaf == nil {
		return err // its own fault
	}
	t, err := verify.ParseTransition(leaf.Bytes)
	if err != nil {
		return nil //nolint:nilerr // the leaf was changed since it was looked at: the next check says so
	}
	want := transitionRow(t, leaf.Bytes, c.stored)
	for _, member := range []struct {
		name      string
		has, want any
		same      bool
	}{
		{"old_key_id", row.OldKeyID, want.OldKeyID, bytes.Equal(row.OldKeyID, want.OldKeyID)},
		{"new_key_id", row.NewKeyID, want.NewKeyID, bytes.Equal(row.NewKeyID, want.NewKeyID)},
		{"reason", []byte(row.Reason), []byte(want.Reason), row.Reason == want.Reason},
		{"note", row.Note, want.Note, bytes.Equal(row.Note, want.Note)},
	} {
		if !member.same {
			c.found(leafFault(KeyChange, n, fmt.Sprintf("key_transitions has the %s %x, the leaf has %x", member.name, member.has, member.want)))
		}
	}
	if !row.ChangedAt.Equal(want.ChangedAt) {
		c.found(leafFault(KeyChange, n, fmt.Sprintf("key_transitions has the time %s, the new key begins at %s",
			row.ChangedAt.UTC().Format(time.RFC3339Nano), want.ChangedAt.UTC().Format(time.RFC3339Nano))))
	}
	return nil
}

// checkNoTransition looks at a row where no leaf is a transition that holds. If the leaf is that very note, then what is
// wrong with it was found already.
func (c *checker) checkNoTransition(ctx context.Context, n uint64, row postgres.KeyTransition) error {
	leaf, err := c.leafAt(ctx, n)
	if err != nil || leaf == nil || bytes.Equal(leaf.Bytes, row.Note) {
		return err
	}
	c.found(leafFault(KeyChange, n, "key_transitions has a row, and the leaf is no change of the key"))
	return nil
}

func (c *checker) leafAt(ctx context.Context, n uint64) (*postgres.StoredLeaf, error) {
	leaves, err := postgres.Leaves(ctx, c.DB, c.Log.ID, n, n+1)
	if err != nil || len(leaves) == 0 {
		return nil, err
	}
	return &leaves[0], nil
}
