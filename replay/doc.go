// Package replay checks a delivery by what its workflows decided. A workflow's history says, event by event, which
// attempts it made, what became of them and how long it waited; Postgres holds the attempts, and the log their leaves.
// Three who were told the same must say the same:
//
//   - Code runs a history through today's workflows, which must decide what is in it;
//   - Compare sets the histories against the attempts and the leaves, and names each place where they part;
//   - Read and Fetch get both, Export and Load keep histories in files for the time after Temporal has removed them.
//
// Compare is pure: what it looks at was read before. A history holds no payload, so none can show in a report, and what
// does show is escaped for terminals.
package replay
