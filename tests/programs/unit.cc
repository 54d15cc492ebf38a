// A stream that the C++ library closes when static objects end, after main and perhaps after a preloaded library.
#include <fstream>

static std::ofstream checkpoint("ckpt/static stream");

int main()
{
    for (int i = 0; i < 20000; i++)
        checkpoint << "value " << i << '\n';
    return checkpoint.good() ? 0 : 1;
}
