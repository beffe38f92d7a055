// Package chaos breaks a running Kapsel on purpose and then reads everything back.
//
// It starts the production shape as processes of one machine: two apis, two workers, Postgres, and Temporal in a process
// of its own. Between them are proxies that can be cut, silenced and slowed down. While webhooks are sent all the time, a
// schedule made from a seed breaks one part after the other, or two at once. Then the faults stop, what is under way settles, and what
// Kapsel has stored is held against what was seen from outside: the answers to each webhook, the requests at each
// receiver, the heads that the log showed.
//
// One subject a file: schedule (what breaks when), machine (what runs), database, standby, disk and clock (Postgres),
// process and network (how it runs and how it is broken), faults and deploy (what each kind does), load, receivers and heads (what is
// seen from outside: ledger), settle, record and check (what is stored, and what must be true of both), report.
//
// A new fault is a line in kinds (schedule.go) and a case in machine.inject (faults.go).
package chaos
