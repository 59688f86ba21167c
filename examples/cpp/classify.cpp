// What an exported classifier says of images: no Python, nothing but MLX.
//
//   natten-zoo export nat_pico_fashion -o fashion.mlxfn --with-preprocessing
//   classify fashion.mlxfn IMAGE...
//
// Images are binary PGM (P5, gray) or PPM (P6, color) of the size that was exported; Pillow and
// ImageMagick write them. For each it prints the best class and its probability.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/mlx.h"

namespace mx = mlx::core;

// Pixels [1, height, width, channels], 0..255.
mx::array read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const auto number = [&] {
    while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');
    int value = 0;
    file >> value;
    return value;
  };
  std::string magic;
  file >> magic;
  const int channels = magic == "P5" ? 1 : magic == "P6" ? 3 : 0;
  const int width = number(), height = number(), largest = number();
  if (!file || !channels || width < 1 || height < 1 || width > 1 << 14 || height > 1 << 14 || largest != 255)
    throw std::runtime_error(path + " is no binary PGM or PPM of 8 bits.");
  file.get();  // the one white space before the pixels
  std::vector<uint8_t> pixels(size_t(width) * height * channels);
  file.read(reinterpret_cast<char*>(pixels.data()), std::streamsize(pixels.size()));
  if (!file) throw std::runtime_error(path + " ends before its last pixel.");
  return mx::array(pixels.begin(), {1, height, width, channels}, mx::uint8);
}

// The texts of "classes": [...] in the JSON beside the function.
std::vector<std::string> read_classes(const std::filesystem::path& path) {
  std::ifstream file(path);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> classes;
  size_t at = json.find("\"classes\": [");
  if (at == std::string::npos) throw std::runtime_error(path.string() + " names no classes.");
  for (at = json.find('[', at) + 1; at < json.size() && json[at] != ']'; ++at) {
    if (json[at] != '"') continue;
    std::string& text = classes.emplace_back();
    for (++at; at < json.size() && json[at] != '"'; ++at) {
      if (json[at] == '\\') ++at;
      text += json.at(at);
    }
  }
  return classes;
}

int main(int argc, char** argv) try {
  if (argc < 3) throw std::invalid_argument("usage: classify FUNCTION.mlxfn IMAGE...");
  const auto function = mx::import_function(argv[1]);
  const auto classes = read_classes(std::filesystem::path(argv[1]).replace_extension(".json"));
  for (int i = 2; i < argc; ++i) {
    const mx::array logits = function({read_image(argv[i])}).at(0);
    const mx::array probabilities = mx::softmax(logits, -1);
    const auto best = mx::argmax(probabilities, -1).item<uint32_t>();
    std::cout << argv[i] << '\t' << classes.at(best) << '\t' << mx::max(probabilities).item<float>() << '\n';
  }
} catch (const std::exception& error) {
  std::cerr << "classify: " << error.what() << '\n';
  return 1;
}
