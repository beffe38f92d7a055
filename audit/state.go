package audit

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

const stateFormat = "kapsel.fsck/v1"

// maxKept is how many faults a state keeps, to tell them again when a check goes on.
const maxKept = 1000

// state is how far a check has come: everything before leaf Next was looked at. It holds no more than the tree's edge.
type state struct {
	Format   string          `json:"format"`
	LogID    string          `json:"log_id"`
	Next     uint64          `json:"next"`   // a multiple of 256
	Levels   []verify.Base64 `json:"levels"` // the tile that is being filled, of levels 1, 2, …
	Chain    []verify.Hex    `json:"chain"`
	Ends     []uint64        `json:"ends"`
	LastRoot int64           `json:"last_root"`
	LastHead postgres.Head   `json:"last_head"`
	Missing  *Fault          `json:"missing,omitempty"`
	Report   Report          `json:"report"`
	Faults   []Fault         `json:"faults"`
}

// save writes the state, at most every so often, whenever a whole chunk is done. The file is replaced as a whole, so that a
// check that is killed goes on from the one before.
func (c *checker) save() error {
	if c.StateFile == "" || c.tree.size%tileWidth != 0 || time.Since(c.saved) < c.saveEvery {
		return nil
	}
	s := state{Format: stateFormat, LogID: c.report.LogID, Next: c.tree.size, Ends: c.keys.ends, LastRoot: c.lastRoot,
		LastHead: c.lastHead, Report: c.report, Faults: c.kept}
	for _, l := range c.tree.upper {
		s.Levels = append(s.Levels, verify.Base64(l.hashes))
	}
	for _, key := range c.keys.chain {
		s.Chain = append(s.Chain, verify.Hex(key))
	}
	if c.missing.Leaves > 0 {
		s.Missing = &c.missing
	}
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := replaceFile(c.StateFile, text, 0o600); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	c.saved = time.Now()
	return nil
}

// resume goes on from the state file, if there is one, and reports whether it did. A log that is smaller than the check had
// come is a fault, and is checked from its first leaf.
func (c *checker) resume() (bool, error) {
	if c.StateFile == "" {
		return false, nil
	}
	text, err := os.ReadFile(c.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read state: %w", err)
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil || s.Format != stateFormat || s.Next%tileWidth != 0 || len(s.Chain) != len(s.Ends)+1 && len(s.Chain) > 0 {
		return false, fmt.Errorf("%s isn't the state of a check; remove it to begin anew", c.StateFile)
	}
	if s.LogID != c.report.LogID {
		return false, fmt.Errorf("%s is the state of a check of %s; name another file", c.StateFile, s.LogID)
	}
	if s.Next > c.head.TreeSize {
		c.found(sizeFault(Rollback, c.head.TreeSize, fmt.Sprintf("an earlier run has seen a published tree of at least %d leaves", s.Next)))
		return false, nil
	}
	return true, c.take(&s)
}

func (c *checker) take(s *state) error {
	c.tree.size = s.Next
	for i, hashes := range s.Levels {
		if len(hashes)%hashSize != 0 || len(hashes) >= tileBytes || len(s.Levels) > 7 {
			return fmt.Errorf("%s isn't the state of a check; remove it to begin anew", c.StateFile)
		}
		c.tree.upper = append(c.tree.upper, level{tiles: s.Next >> (8 * (uint(i) + 2))})
		for place := 0; place < len(hashes); place += hashSize {
			if err := c.tree.push(i, hashes[place:place+hashSize]); err != nil {
				return err
			}
		}
	}
	c.keys.chain = nil
	for _, key := range s.Chain {
		if !c.keys.knows(decoded(key)) {
			return fmt.Errorf("the log no longer has the key %s, which an earlier run has seen", hex.EncodeToString(key))
		}
		c.keys.chain = append(c.keys.chain, decoded(key))
	}
	c.keys.ends, c.lastRoot, c.lastHead = s.Ends, s.LastRoot, s.LastHead
	if s.Missing != nil {
		c.missing = *s.Missing
	}
	newest := c.report
	c.report = s.Report
	c.report.TreeSize, c.report.RootHash, c.report.Timestamp, c.report.Resumed = newest.TreeSize, newest.RootHash, newest.Timestamp, s.Next
	c.kept = s.Faults
	for _, f := range s.Faults {
		if c.Found != nil {
			c.Found(f)
		}
	}
	return nil
}

func decoded(key verify.Hex) []byte { return key }
