// Package pgserver runs a Postgres server on loopback from the binaries that are on the machine, for a person who tries
// Kapsel and for tests. Production brings its own Postgres; nothing there imports this package.
//
// A server belongs to one directory, [Config.Dir]:
//
//	data          the cluster; a symbolic link where Postgres could not have reached it (see below)
//	password      the superuser's password, mode 0600, made once; connections are scram-sha-256 even on loopback,
//	              because other users of the machine share it
//	server.log    what Postgres writes to stderr (server.log.1: the one before, once it grew)
//
// The caller makes sure that one process at a time uses a directory, by a lock of its own.
//
// # Root
//
// Postgres refuses to run as root. For root it runs as the owner of the cluster, for a new one as the user postgres, or
// nobody where there is no such user. If that user can't pass through the directories above Dir (/root, say), the cluster
// goes to /var/lib/kapsel-<hash of Dir>-<random> and Dir/data links to it. Whoever removes Dir gets a fresh cluster, never
// the one that an earlier Dir of that name had; the old one stays until somebody removes it too.
//
// # Life and death
//
// postgres itself is executed, in a process group of its own, so that Ctrl-C in a terminal reaches only the caller, who
// stops things in order. On Linux the kernel shuts it down when the caller dies, however it dies. Elsewhere it survives a
// kill -9 of the caller, and the next Start on the same directory stops it first. Either way no committed transaction is
// lost, and no file of the cluster is ever deleted to make it start.
package pgserver
