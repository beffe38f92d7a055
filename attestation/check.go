package attestation

import (
	"context"
	"fmt"
)

// Check finds out whether a head could be recorded and signed now, and says nothing new by it: the head that the record holds, which
// may have been signed before, is recorded and signed once more, and the signature thrown away. Another process that advances the
// record meanwhile does no harm.
func Check(ctx context.Context, record *HighWater, signer *Signer) error {
	head, err := record.rewrite(ctx)
	if err != nil {
		return err
	}
	if _, err := signer.SignTreeHead(head); err != nil {
		return err
	}
	return nil
}

// rewrite writes the record as it is, under its lock: it would fail where Advance fails.
func (w *HighWater) rewrite(ctx context.Context) (Head, error) {
	unlock, err := lockFile(ctx, w.path+".lock")
	if err != nil {
		return Head{}, fmt.Errorf("lock high-water record: %w", err)
	}
	defer unlock()
	head, err := w.Read()
	if err != nil {
		return Head{}, err
	}
	if err := replaceFile(w.path, formatHighWater(w.origin, head)); err != nil {
		return Head{}, fmt.Errorf("write high-water record: %w", err)
	}
	return head, nil
}
