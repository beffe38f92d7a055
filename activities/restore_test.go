package activities_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// Whatever was wrong with a leaf that was set aside, trying again gives the log the one that the attempt recorded, once.
func TestARetriedDeadLetterIsTheRecordedLeaf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bad := map[uuid.UUID]bool{}
	statements := append([]string{"update leaf_queue set secrets = 'too short' where attempt_id = $1"}, values(poisons)...)
	for _, statement := range statements {
		delivery := b.accept(t, 1, b.destination)
		require.NoError(t, b.deliverAll(t.Context(), delivery))
		attempt := id.AttemptOf(delivery[0], 1)
		b.exec(t, statement, attempt)
		bad[attempt] = true
	}
	b.seal(t)
	b.newestHead(t, 0)
	letters, err := postgres.DeadLetters(t.Context(), b.engine, b.log.ID, false, 0, 100)
	require.NoError(t, err)
	require.Len(t, letters, len(statements))
	for _, letter := range letters {
		done, err := activities.RetryDeadLetter(t.Context(), b.engine, letter.ID, "Ada")
		require.NoError(t, err)
		require.Equal(t, postgres.ResolvedQueued, done.Resolution, "%s: %s", letter.Reason, done.Reason)
		require.True(t, bad[done.Attempt], letter.Reason)
		again, err := activities.RetryDeadLetter(t.Context(), b.engine, letter.ID, "Ada")
		require.NoError(t, err)
		require.Empty(t, again.Resolution, "it is resolved once")
	}
	b.seal(t)
	b.newestHead(t, len(statements))
	require.Equal(t, len(statements), value[int](t, b, `select count(*) from merkle_leaves l join attempts a on a.id = l.attempt_id
		where a.leaf_hash = l.leaf_hash and l.secrets is not null`))
	require.Equal(t, len(statements), value[int](t, b, `select count(*) from attestation_dead_letters
		where resolution = 'queued' and resolved_by = 'Ada' and resolved_at is not null`), "what was set aside is kept")
	b.later(t)
	require.Empty(t, b.reconcile(t).Findings)
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// Reconciliation does the same by itself.
func TestReconciliationRestoresWhatWasSetAside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.exec(t, "update leaf_queue set leaf_hash = sha256(leaf)")
	b.seal(t)
	b.newestHead(t, 0)
	b.tamper(t, "update attempts set leaf_parts = null") // the bytes that were set aside are right
	b.later(t)
	require.Equal(t, 3, b.reconcile(t).Requeued)
	b.seal(t)
	b.newestHead(t, 3)
	require.Equal(t, 3, value[int](t, b, "select count(*) from attestation_dead_letters where resolution = 'queued' and resolved_by = 'reconciliation'"))
}

func TestRetryDeadLetterRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := activities.RetryDeadLetter(t.Context(), b.engine, 7, "Ada")
	require.ErrorIs(t, err, postgres.ErrNoDeadLetter)

	// A leaf that no attempt recorded.
	b.queueLeaves(t, 1)
	b.tamper(t, "delete from attempts")
	b.exec(t, "update leaf_queue set secrets = 'odd'")
	b.seal(t)
	done, err := activities.RetryDeadLetter(t.Context(), b.engine, 1, "Ada")
	require.NoError(t, err)
	require.Empty(t, done.Resolution)
	require.Contains(t, done.Reason, "is recorded")

	// One whose attempt has its leaf is resolved, and queues nothing.
	b.queueLeaves(t, 1)
	b.seal(t)
	b.exec(t, queueAgain+"merkle_leaves where leaf_index = 0")
	b.exec(t, "update leaf_queue set leaf_hash = sha256(leaf)")
	b.seal(t)
	done, err = activities.RetryDeadLetter(t.Context(), b.engine, 2, "Ada")
	require.NoError(t, err)
	require.Equal(t, postgres.ResolvedInLog, done.Resolution)
	require.Zero(t, b.queued(t))

	// One whose log is closed stays.
	b.queueLeaves(t, 1)
	b.exec(t, "update leaf_queue set secrets = 'odd'")
	b.seal(t)
	b.exec(t, "update logs set closed_at = now()")
	done, err = activities.RetryDeadLetter(t.Context(), b.engine, 3, "Ada")
	require.NoError(t, err)
	require.Contains(t, done.Reason, "closed")
	require.Equal(t, 2, value[int](t, b, "select count(*) from attestation_dead_letters where resolved_at is null"))
}

// Nobody can change what was set aside, or make it go.
func TestDeadLettersAreARecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 1)
	b.exec(t, "update leaf_queue set secrets = 'odd'")
	b.seal(t)
	for _, statement := range []string{
		"update attestation_dead_letters set reason = 'none'", "update attestation_dead_letters set leaf = ''",
		"delete from attestation_dead_letters", "truncate attestation_dead_letters",
	} {
		_, err := b.owner.Exec(t.Context(), statement)
		require.ErrorContains(t, err, "23001", statement) // restrict_violation
	}
	b.exec(t, "update attestation_dead_letters set secrets = ''") // erasure
	b.exec(t, "update attestation_dead_letters set resolved_at = now(), resolution = 'queued', resolved_by = 'Ada'")
	_, err := b.owner.Exec(t.Context(), "update attestation_dead_letters set resolved_by = 'Bob'")
	require.ErrorContains(t, err, "23001")
}
