/*
 * loglines LINES: writes that many lines of 64 bytes (with the new line) to stdout, as fast as the reader takes them.
 * Each line carries its number, so that a lost, doubled or torn one is found.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 64, BATCH = 1024 };

static void number(char *line, unsigned long n)
{
	for (int i = 15; i >= 0; i--) {
		line[i] = (char)('0' + n % 10);
		n /= 10;
	}
}

static int put(const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t done = write(1, bytes, length);
		if (done <= 0)
			return -1;
		bytes += done;
		length -= (size_t)done;
	}
	return 0;
}

/* Adds one to the sixteen digits; carries are rare, so this is far cheaper than writing the number anew. */
static void advance(char *line, unsigned step)
{
	unsigned carry = step;
	for (int i = 15; i >= 0 && carry; i--) {
		unsigned digit = (unsigned)(line[i] - '0') + carry;
		line[i] = (char)('0' + digit % 10);
		carry = digit / 10;
	}
}

int main(int argc, char **argv)
{
	static char batch[BATCH * LINE];
	unsigned long total = argc > 1 ? strtoul(argv[1], NULL, 10) : 1024;

	for (unsigned i = 0; i < BATCH; i++) {
		char *line = batch + (size_t)i * LINE;
		memset(line, 'x', LINE);
		line[16] = ' ';
		line[LINE - 1] = '\n';
		number(line, i);
	}
	for (unsigned long done = 0; done < total; done += BATCH) {
		unsigned long count = total - done < BATCH ? total - done : BATCH;
		if (put(batch, count * LINE) < 0)
			return 1;
		for (unsigned i = 0; i < BATCH; i++)
			advance(batch + (size_t)i * LINE, BATCH);
	}
	return 0;
}
