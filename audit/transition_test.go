package audit_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/verify"
)

// What the api shows of the changes of a key is what the leaves say, no less and no more.
func TestFsckComparesKeyTransitionsWithTheLeaves(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql   string
		fault string
	}{
		"a row that is missing": {"delete from key_transitions where tree_size = 20", "key_change: leaf 20"},
		"a note":                {"update key_transitions set note = note || 'x' where tree_size = 20", "key_change: leaf 20"},
		"a reason":              {"update key_transitions set reason = 'compromise' where tree_size = 20", "key_change: leaf 20"},
		"an old key":            {"update key_transitions set old_key_id = sha256('') where tree_size = 20", "key_change: leaf 20"},
		"a new key":             {"update key_transitions set new_key_id = sha256('') where tree_size = 20", "key_change: leaf 20"},
		"a time":                {"update key_transitions set changed_at = changed_at + interval '1 ms' where tree_size = 20", "key_change: leaf 20"},
		"a change that isn't":   {"insert into key_transitions (log_id, tree_size, old_key_id, new_key_id, reason, note, changed_at) select log_id, 5, new_key_id, old_key_id, reason, note, changed_at from key_transitions", "key_change: leaf 5"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sealed(t, 20)
			b.rotate(t, verify.ReasonRotation, nil)
			b.queue(t, b.tenant, 5)
			b.seal(t)
			b.requireSound(t, 26)
			b.tamper(t, c.sql)
			_, faults := b.fsck(t)
			require.Equal(t, []string{c.fault}, where(faults))
		})
	}
}
