package monitor

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"time"

	"github.com/kapsel-io/kapsel/verify"
)

// maxAhead is how far a head may be dated ahead of the monitor's clock.
const maxAhead = 5 * time.Minute

// checkTimeout bounds one check, however slowly its many answers come.
const checkTimeout = 2 * time.Minute

// Config says which log to follow and what to trust.
type Config struct {
	// URL is where the log's checkpoint and tiles are: https://host/log/log_….
	URL string
	// PublicKey is the log's key, Origin its name. Without Origin it is host and path of URL.
	PublicKey ed25519.PublicKey
	Origin    string
	// Transitions are the notes of the log's key changes, in order of time (see verify.NewKeyring).
	Transitions [][]byte
	// State is the file that remembers the newest head. If it doesn't exist, the first head is believed.
	State string
	// Evidence is the directory for evidence.
	Evidence string
}

// Monitor follows one log. Each state file belongs to one Monitor.
type Monitor struct {
	config Config
	client *client
	ring   *verify.Keyring
	vkey   string
	now    func() time.Time
}

// Report is what one check found.
type Report struct {
	Verdict  verify.Verdict        // Consistent, Stale, or misconduct
	Head     verify.SignedTreeHead // as shown by the log
	Seen     verify.SignedTreeHead // the newest that was seen before; of size 0 and without a root if First
	First    bool                  // nothing had been seen before, so there was nothing to compare
	Evidence string                // file with the evidence, if the verdict is misconduct
}

// New makes a monitor. Errors wrap ErrURL, or those of verify.NewKeyring.
func New(config Config) (*Monitor, error) {
	c, err := newClient(config.URL)
	if err != nil {
		return nil, err
	}
	if config.Origin == "" {
		config.Origin = c.origin()
	}
	if err := verify.CheckPublicKey(config.PublicKey); err != nil {
		return nil, err
	}
	if err := verify.CheckOrigin(config.Origin); err != nil {
		return nil, err
	}
	vkey := verify.VKey(config.Origin, config.PublicKey)
	ring, err := verify.NewKeyring(vkey, config.Transitions...)
	if err != nil {
		return nil, err
	}
	return &Monitor{config: config, client: c, ring: ring, vkey: vkey, now: time.Now}, nil
}

// Newest returns the time of the newest head in the state, zero if there is none. Errors wrap ErrState.
func (m *Monitor) Newest() (time.Time, error) {
	s, err := loadState(m.config.State)
	if s == nil || err != nil {
		return time.Time{}, err
	}
	head, err := m.seen(s)
	return time.UnixMilli(head.Timestamp), err
}

// Check looks at the log once. A verdict of misconduct is no error: its evidence is on disk before Check returns, and the
// state stays as it was. A consistent newer head is in the state before Check returns. Errors wrap ErrState, ErrResponse,
// or those of verify.Keyring.Head and verify.CompareHeads; they say that nothing could be found out.
func (m *Monitor) Check(ctx context.Context) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	before, err := loadState(m.config.State)
	if err != nil {
		return Report{}, err
	}
	var r Report
	if before != nil {
		if r.Seen, err = m.seen(before); err != nil {
			return Report{}, err
		}
	}
	note, err := m.client.checkpoint(ctx)
	if err != nil {
		return Report{}, err
	}
	fetched := m.now()
	if r.Head, err = m.head(note, fetched); err != nil {
		return Report{}, err
	}
	after := &state{
		Format: stateFormat, URL: m.config.URL, Checkpoint: string(note),
		FetchedAt: verify.FormatTime(fetched), FirstSeen: verify.FormatTime(fetched),
	}
	if before == nil {
		r.First, r.Verdict = true, verify.Consistent
		return r, writeFile(m.config.State, after)
	}
	after.FirstSeen = before.FirstSeen
	hashes, err := m.judge(ctx, &r)
	switch {
	case err != nil:
		return Report{}, err
	case r.Verdict.Misconduct():
		r.Evidence, err = m.keep(r.Verdict, before, after, hashes)
		return r, err
	case r.Verdict == verify.Consistent && after.Checkpoint != before.Checkpoint:
		return r, writeFile(m.config.State, after)
	}
	return r, nil
}

// seen verifies what the state holds, as strictly as what the log serves.
func (m *Monitor) seen(s *state) (verify.SignedTreeHead, error) {
	head, _, err := m.ring.Head([]byte(s.Checkpoint))
	if err != nil {
		return head, fmt.Errorf("%w: %s: %w; if the log changed its key, give the note of the transition", ErrState, m.config.State, err)
	}
	return head, nil
}

// head verifies what the log serves.
func (m *Monitor) head(note []byte, now time.Time) (verify.SignedTreeHead, error) {
	head, compromised, err := m.ring.Head(note)
	switch {
	case err != nil:
		return head, err
	case compromised:
		return head, fmt.Errorf("%w: the head is signed only under a key that was given up as compromised", verify.ErrUntrustedKey)
	case time.UnixMilli(head.Timestamp).After(now.Add(maxAhead)):
		return head, fmt.Errorf("%w: the head is dated %s ahead of this machine's clock", ErrResponse,
			time.UnixMilli(head.Timestamp).Sub(now).Round(time.Second))
	}
	return head, nil
}

// judge compares r's heads, with hashes from the log where they are needed. A log that shows an older head and no hashes
// to it is only stale; one that shows a newer head has to prove it.
func (m *Monitor) judge(ctx context.Context, r *Report) (verify.Hashes, error) {
	small, large := r.Seen, r.Head
	if small.TreeSize > large.TreeSize {
		small, large = large, small
	}
	older := r.Head.Timestamp < r.Seen.Timestamp
	var hashes verify.Hashes
	if small.TreeSize < large.TreeSize && small.Timestamp < large.Timestamp {
		var err error
		if hashes, err = m.client.hashes(ctx, small, large); err != nil && !older {
			return nil, fmt.Errorf("prove that size %d contains size %d: %w", large.TreeSize, small.TreeSize, err)
		}
	}
	verdict, err := verify.CompareHeads(r.Seen, r.Head, hashes)
	if err != nil && older {
		hashes = nil
		verdict, err = verify.CompareHeads(r.Seen, r.Head, nil)
	}
	r.Verdict = verdict
	return hashes, err
}

// keep writes the evidence. Its name follows from the two notes, so that the same evidence is kept once.
func (m *Monitor) keep(v verify.Verdict, before, after *state, hashes verify.Hashes) (string, error) {
	e := verify.Evidence{
		Format: verify.EvidenceFormat, Verdict: v, VKey: m.vkey, URL: m.config.URL,
		Seen:             verify.EvidenceHead{Checkpoint: before.Checkpoint, FetchedAt: before.FetchedAt},
		Now:              verify.EvidenceHead{Checkpoint: after.Checkpoint, FetchedAt: after.FetchedAt},
		ConsistencyProof: hashes,
	}
	for _, t := range m.config.Transitions {
		e.Transitions = append(e.Transitions, string(t))
	}
	sum := sha256.Sum256([]byte(before.Checkpoint + "\x00" + after.Checkpoint))
	path := filepath.Join(m.config.Evidence, fmt.Sprintf("%s-%x.evidence.json", v, sum[:8]))
	if err := writeFile(path, e); err != nil {
		return "", err
	}
	if _, _, err := e.Judge(m.vkey); err != nil { // the head seen before may be under a key given up since
		return path, fmt.Errorf("the heads contradict each other (%s), but what was kept in %s convicts nobody: %w", v, path, err)
	}
	return path, nil
}
