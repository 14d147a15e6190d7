/* Set-user-id root in its image: prints the effective uid, so that a test sees whether the set-id bit took effect. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %u\n", (unsigned)geteuid());
	return 0;
}
