package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// lettersAtOnce is how many dead letters are read at once.
const lettersAtOnce = 500

func logDeadLettersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "See and retry leaves that were set aside",
		Long: `See and retry leaves that were set aside.

A leaf that isn't what it should be (its bytes don't fit its hash or its attempt, it says
something else than the attempt recorded, it is no leaf at all) is set aside with the reason,
and the rest of the log goes on. Nobody but a defect or a hand in the database makes one: find
out which. docs/guides/sealing.md says more.`,
		Args: cobra.NoArgs,
		RunE: help,
	}
	cmd.AddCommand(deadLettersListCommand(), deadLettersShowCommand(), deadLettersRetryCommand())
	return cmd
}

func deadLettersListCommand() *cobra.Command {
	var logName string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "list [--log LOG] [--all]",
		Short: "List leaves that were set aside and aren't resolved",
		Long: `List leaves that were set aside and aren't resolved; with --all also those that are, and how.

With --json each is a JSON object on a line of its own.

` + variables("export"),
		Example: "  kapsel log dead-letters list\n  kapsel log dead-letters list --all --json | jq -r .reason | sort | uniq -c",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withEngine(cmd, func(engine *pgxpool.Pool) error {
				log := uuid.Nil
				if logName != "" {
					chosen, err := chooseLog(cmd.Context(), engine, logName)
					if err != nil {
						return err
					}
					log = chosen.ID
				}
				return listDeadLetters(cmd, engine, log, all, asJSON)
			})
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().StringVar(&logName, "log", "", "only those of this log, log_…")
	cmd.Flags().BoolVar(&all, "all", false, "also those that are resolved")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line each")
	return cmd
}

func deadLettersShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show NUMBER",
		Short:   "Show one, with its bytes",
		Long:    "Show a leaf that was set aside, with its bytes. What opens its commitments is not shown.\n\n" + variables("export"),
		Example: "  kapsel log dead-letters show 7\n  kapsel log dead-letters show 7 --json | jq -r .leaf | base64 -d",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := letterNumber(args[0])
			if err != nil {
				return unusable(err)
			}
			return withEngine(cmd, func(engine *pgxpool.Pool) error {
				letter, err := postgres.ReadDeadLetter(cmd.Context(), engine, number)
				if errors.Is(err, postgres.ErrNoDeadLetter) {
					return fmt.Errorf("there is no dead letter %d; `kapsel log dead-letters list --all` lists them", number)
				}
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(letterJSON(letter, true))
				}
				return showLetter(cmd.OutOrStdout(), letter)
			})
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; leaf is base64")
	return cmd
}

func deadLettersRetryCommand() *cobra.Command {
	var all, asJSON bool
	var by string
	cmd := &cobra.Command{
		Use:   "retry NUMBER… | --all",
		Short: "Queue the leaves that attempts recorded in place of those set aside",
		Long: `Queue the leaves that attempts recorded in place of those that were set aside.

What was set aside is never queued itself. Its attempt's row names the hash of the leaf that
was recorded; a leaf with that hash is found in the dead letter, or made again from the row, to
the byte, and queued. The log gives each attempt one place, however often this is run, also beside
workers. What was set aside is kept, with who resolved it and when.

A dead letter stays as it is if no attempt recorded such a leaf, if the leaf can't be made again,
or if its log is closed; the reason is printed.

The exit status is 0 if all were resolved, 1 if some were not, and 2 if the arguments can't be used
or something can't be reached.

` + variables("export"),
		Example: "  kapsel log dead-letters retry 7 8\n  kapsel log dead-letters retry --all --json",
		Args: func(_ *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return unusable(errors.New("name dead letters by their numbers, or all of them by --all"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var numbers []int64
			for _, arg := range args {
				number, err := letterNumber(arg)
				if err != nil {
					return unusable(err)
				}
				numbers = append(numbers, number)
			}
			return withEngine(cmd, func(engine *pgxpool.Pool) error { return retryLetters(cmd, engine, numbers, all, by, asJSON) })
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().BoolVar(&all, "all", false, "all that aren't resolved")
	cmd.Flags().StringVar(&by, "by", "", "who asks for it, for the record (default: the user of the system)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line each")
	return cmd
}

// withEngine opens the database as workers do. Errors have the status of one that couldn't do its work, unless they have their own.
func withEngine(cmd *cobra.Command, f func(engine *pgxpool.Pool) error) error {
	config, _, err := load()
	if err != nil {
		return toolError(err)
	}
	engine, err := openEngine(cmd.Context(), &config)
	if err != nil {
		return toolError(err)
	}
	defer engine.Close()
	err = f(engine)
	if own := (exitError{}); errors.As(err, &own) {
		return err
	}
	return toolError(err)
}

func letterNumber(arg string) (int64, error) {
	number, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || number < 1 {
		return 0, fmt.Errorf("%.40q is not the number of a dead letter, such as 7", arg)
	}
	return number, nil
}

func listDeadLetters(cmd *cobra.Command, engine *pgxpool.Pool, log uuid.UUID, all, asJSON bool) error {
	table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	after, count := int64(0), 0
	for {
		letters, err := postgres.DeadLetters(cmd.Context(), engine, log, all, after, lettersAtOnce)
		if err != nil {
			return err
		}
		for _, l := range letters {
			if asJSON {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(letterJSON(&l, false)); err != nil {
					return err
				}
				continue
			}
			if count == 0 {
				_, _ = fmt.Fprintln(table, "NUMBER\tFAILED\tATTEMPT\tREASON\tRESOLVED") // Flush tells
			}
			count++
			_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\n", l.ID, l.FailedAt.UTC().Format(time.RFC3339), id.Attempt.Format(l.AttemptID), printable(l.Reason), resolved(&l))
		}
		if len(letters) < lettersAtOnce {
			break
		}
		after = letters[len(letters)-1].ID
	}
	if !asJSON && count == 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "none")
		return err
	}
	return table.Flush()
}

func resolved(l *postgres.DeadLetter) string {
	if l.ResolvedAt == nil {
		return "no"
	}
	text := l.ResolvedAt.UTC().Format(time.RFC3339)
	if l.Resolution != nil {
		text += " " + *l.Resolution
	}
	if l.ResolvedBy != nil {
		text += " by " + printable(*l.ResolvedBy)
	}
	return text
}

// deadLetterJSON is a dead letter as --json prints it.
type deadLetterJSON struct {
	Number     int64      `json:"number"`
	LogID      string     `json:"log_id"`
	TenantID   string     `json:"tenant_id"`
	AttemptID  string     `json:"attempt_id"`
	LeafHash   string     `json:"leaf_hash"`
	Reason     string     `json:"reason"`
	FailedAt   time.Time  `json:"failed_at"`
	ResolvedAt *time.Time `json:"resolved_at,omitempty"`
	Resolution *string    `json:"resolution,omitempty"`
	ResolvedBy *string    `json:"resolved_by,omitempty"`
	Leaf       []byte     `json:"leaf,omitempty"`
}

func letterJSON(l *postgres.DeadLetter, withLeaf bool) deadLetterJSON {
	out := deadLetterJSON{
		Number: l.ID, LogID: id.Log.Format(l.LogID), TenantID: id.Tenant.Format(l.TenantID), AttemptID: id.Attempt.Format(l.AttemptID),
		LeafHash: hex.EncodeToString(l.LeafHash), Reason: l.Reason, FailedAt: l.FailedAt.UTC(), ResolvedAt: l.ResolvedAt,
		Resolution: l.Resolution, ResolvedBy: l.ResolvedBy,
	}
	if withLeaf {
		out.Leaf = l.Leaf
	}
	return out
}

func showLetter(w io.Writer, l *postgres.DeadLetter) error {
	_, err := fmt.Fprintf(w, "number     %d\nreason     %s\nfailed     %s\nresolved   %s\nlog        %s\ntenant     %s\nattempt    %s\nleaf hash  %x\nleaf       %s\n",
		l.ID, printable(l.Reason), l.FailedAt.UTC().Format(time.RFC3339), resolved(l), id.Log.Format(l.LogID), id.Tenant.Format(l.TenantID),
		id.Attempt.Format(l.AttemptID), l.LeafHash, printable(string(l.Leaf)))
	return err
}

// printable is a text that a terminal shows and doesn't obey: what was set aside may hold anything.
func printable(text string) string {
	quoted := strconv.QuoteToASCII(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// retriedJSON is what became of a dead letter.
type retriedJSON struct {
	Number     int64  `json:"number"`
	Resolution string `json:"resolution,omitempty"`
	AttemptID  string `json:"attempt_id,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

func retryLetters(cmd *cobra.Command, engine *pgxpool.Pool, numbers []int64, all bool, by string, asJSON bool) error {
	if by == "" {
		by = "operator"
		if u, err := user.Current(); err == nil && u.Username != "" {
			by = u.Username
		}
	}
	remaining := 0
	retry := func(number int64) error {
		done, err := activities.RetryDeadLetter(cmd.Context(), engine, number, by)
		if errors.Is(err, postgres.ErrNoDeadLetter) {
			return fmt.Errorf("there is no dead letter %d; `kapsel log dead-letters list --all` lists them", number)
		}
		if err != nil {
			return err
		}
		if done.Resolution == "" {
			remaining++
		}
		return printRetried(cmd.OutOrStdout(), number, done, asJSON)
	}
	for _, number := range numbers {
		if err := retry(number); err != nil {
			return err
		}
	}
	for after := int64(0); all; {
		letters, err := postgres.DeadLetters(cmd.Context(), engine, uuid.Nil, false, after, lettersAtOnce)
		if err != nil {
			return err
		}
		for _, l := range letters {
			if err := retry(l.ID); err != nil {
				return err
			}
			after = l.ID
		}
		all = len(letters) == lettersAtOnce
	}
	if remaining > 0 {
		return exitError{statusUnsound, fmt.Errorf("%d stay as they are", remaining)}
	}
	return nil
}

func printRetried(w io.Writer, number int64, done activities.RetriedLetter, asJSON bool) error {
	out := retriedJSON{Number: number, Resolution: done.Resolution, Reason: done.Reason}
	if done.Resolution != "" {
		out.AttemptID, out.Reason = id.Attempt.Format(done.Attempt), ""
	}
	if asJSON {
		return json.NewEncoder(w).Encode(out)
	}
	var err error
	switch done.Resolution {
	case postgres.ResolvedQueued:
		_, err = fmt.Fprintf(w, "%d  the recorded leaf of %s waits for its place in the log\n", number, out.AttemptID)
	case postgres.ResolvedInLog:
		_, err = fmt.Fprintf(w, "%d  the recorded leaf of %s is in the log already\n", number, out.AttemptID)
	default:
		_, err = fmt.Fprintf(w, "%d  stays: %s\n", number, printable(done.Reason))
	}
	return err
}
